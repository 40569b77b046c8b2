"""Before a replica is ready its weights are finite and so are its first logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compute_svc.engine.start.first_pass import require_finite_logits
from compute_svc.engine.start.loading import load_engine
from compute_svc.models.registry import load_model
from compute_svc.models.weights import SINGLE_FILE, CheckpointError
from compute_svc.settings import Settings
from tests.fakes.checkpoints import save_checkpoint

CPU = torch.device("cpu")


def _settings(folder: Path) -> Settings:
    (folder / "tokenizer.json").write_text("{}")
    return Settings(model=folder, kv_cache_bytes=1 << 20, threads=1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.embed_tokens.weight"),
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("llama", "model.norm.weight"),
        ("gemma", "model.layers.2.input_layernorm.weight"),
        # An expert no token may ever go to.
        ("mixtral", "model.layers.0.block_sparse_moe.experts.3.w2.weight"),
        ("gpt2", "transformer.h.1.attn.c_attn.bias"),
    ],
)
def test_one_number_that_is_not_finite_keeps_a_replica_from_being_ready(family: str, name: str, value: float, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family)
    tensors = load_file(tmp_path / SINGLE_FILE)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, tmp_path / SINGLE_FILE)

    with pytest.raises(CheckpointError, match=f"tensor {name} holds numbers that are not finite in float32"):
        load_engine(_settings(tmp_path))


def test_a_number_too_large_for_the_format_computed_in_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    tensors = load_file(tmp_path / SINGLE_FILE)
    tensors["model.norm.weight"][0] = torch.finfo(torch.float32).max
    save_file(tensors, tmp_path / SINGLE_FILE)

    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight holds numbers that are not finite in bfloat16"):
        load_model(tmp_path, dtype=torch.bfloat16, device=CPU)


def test_large_numbers_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    tensors = load_file(tmp_path / SINGLE_FILE)
    tensors["model.norm.weight"][:2] = torch.finfo(torch.float32).max
    save_file(tensors, tmp_path / SINGLE_FILE)

    load_model(tmp_path, dtype=torch.float32, device=CPU)


def test_finite_weights_with_logits_that_are_not_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    tensors = load_file(tmp_path / SINGLE_FILE)
    tensors["model.norm.weight"].fill_(1e38)
    tensors["lm_head.weight"].fill_(1e3)
    save_file(tensors, tmp_path / SINGLE_FILE)

    with pytest.raises(CheckpointError, match="LlamaForCausalLM: logits of the first tokens are not finite, though all weights are"):
        load_engine(_settings(tmp_path))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom", "gpt2", "opt", "phi"])
def test_a_sound_model_passes(family: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, family)

    require_finite_logits(load_model(tmp_path, dtype=torch.bfloat16, device=CPU))
