"""Models of quantised checkpoints: the numbers that are stored, in every family and format, and integers multiplied as such where there are some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compute_svc.kernels.linear import ActivationFormat, LinearWeight
from compute_svc.kernels.native import NativeMode
from compute_svc.layers.heads import ProjectedHeads
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from compute_svc.models.weights import SINGLE_FILE, CheckpointError
from tests.fakes.checkpoints import edit_config, save_checkpoint
from tests.fakes.forward_driver import ForwardDriver
from tests.fakes.native_kernels import native_kernels
from tests.fakes.quantised_checkpoints import SCHEMES, save_dense, save_quantised

WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
# Each with something else that happens to rows or inputs of its matrices on their way.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": WIDE,
    "qwen2": {**WIDE, "head_dim": 16},
    "phi3": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2_moe": {"hidden_size": 64, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "head_dim": 16},
    "gemma2": WIDE,
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4},
    "deepseek_v3": {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "q_lora_rank": 32, "kv_lora_rank": 32},
}
TOKENS = torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(3)).tolist()
CPU = torch.device("cpu")


def loaded(folder: Path, activations: ActivationFormat = "auto") -> CausalLM:
    return load_model(folder, dtype=torch.float32, device=CPU, activations=activations)


def logits_of(model: CausalLM) -> torch.Tensor:
    driver = ForwardDriver(model)
    return driver.step([], [(driver.request(TOKENS, len(TOKENS)), len(TOKENS))], all_logits=True)


def distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the middle token, relative to how logits are spread: another choice of experts moves a few tokens far."""
    return float((logits - expected).square().mean(dim=1).sqrt().median() / expected.std())


def qkv_of(model: CausalLM) -> LinearWeight:
    heads = model.layers[0].attention.heads
    assert isinstance(heads, ProjectedHeads)
    return heads.qkv


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_every_family_computes_with_the_numbers_that_are_stored(family: str, scheme: str, tmp_path: Path) -> None:
    quantised = save_quantised(tmp_path, family, SCHEMES[scheme], num_hidden_layers=2, **FAMILIES[family])

    assert torch.equal(logits_of(loaded(quantised, "float")), logits_of(loaded(save_dense(tmp_path, quantised))))


@pytest.mark.parametrize("scheme", ["int8-weights-alone", "int4-weights-alone", "fp8", "nf4", "nf4-nested"])
def test_every_format_is_the_numbers_that_are_stored(scheme: str, tmp_path: Path) -> None:
    quantised = save_quantised(tmp_path, "llama", SCHEMES[scheme], num_hidden_layers=2, **WIDE)

    assert torch.equal(logits_of(loaded(quantised, "float")), logits_of(loaded(save_dense(tmp_path, quantised))))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_integers_are_multiplied_as_such_and_come_near_their_numbers(family: str, scheme: str, tmp_path: Path) -> None:
    quantised = save_quantised(tmp_path, family, SCHEMES[scheme], num_hidden_layers=2, **FAMILIES[family])
    exact = logits_of(loaded(quantised, "float"))
    with native_kernels("off"):
        model = loaded(quantised)
        plain = logits_of(model)
    native = logits_of(loaded(quantised))

    assert model.kernels == "integer products"
    # Activations rounded to 8 bits in each of a dozen products.
    assert 0 < distance(plain, exact) < 0.1
    # The same integers; norms, attention and activations may differ by units of the last place, and rounding to codes magnifies few of them.
    assert distance(native, plain) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_of_other_formats_are_joined_as_the_models_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    quantised = save_quantised(tmp_path, "llama", SCHEMES["int8"], num_hidden_layers=1, **WIDE)
    keys = "model.layers.0.self_attn.k_proj"
    tensors = load_file(quantised / SINGLE_FILE)
    del tensors[f"{keys}.weight_scale"]
    tensors[f"{keys}.weight"] = tensors[f"{keys}.weight"].float() / 100
    save_file(tensors, quantised / SINGLE_FILE)
    section = json.loads((quantised / "config.json").read_text())["quantization_config"]
    edit_config(quantised, quantization_config={**section, "ignore": [*section["ignore"], keys]})

    mixed, dense = (load_model(folder, dtype=dtype, device=CPU) for folder in (quantised, save_dense(tmp_path, quantised)))

    assert qkv_of(mixed).ints is None
    assert torch.equal(qkv_of(mixed).data.to_dense(), qkv_of(dense).data.to_dense())
    assert logits_of(mixed).isfinite().all()


@pytest.mark.parametrize(("mode", "words"), [("off", ""), ("required", "native kernels")])
def test_replicas_that_round_otherwise_are_told_apart(mode: NativeMode, words: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama", num_hidden_layers=1)
    with native_kernels(mode):
        assert loaded(tmp_path).kernels == words


def test_weights_made_for_floating_activations_are_dense_unless_a_kernel_reads_their_integers(tmp_path: Path) -> None:
    quantised = save_quantised(tmp_path, "llama", SCHEMES["int4-weights-alone"], num_hidden_layers=1, **WIDE)
    with native_kernels("off"):
        assert qkv_of(loaded(quantised)).ints is None
        assert qkv_of(loaded(quantised, "int8")).ints is not None
    assert qkv_of(loaded(quantised, "float")).ints is None


def test_integers_take_the_memory_of_integers(tmp_path: Path) -> None:
    sizes = dict(WIDE, hidden_size=256, intermediate_size=512)
    quantised = save_quantised(tmp_path, "llama", SCHEMES["int4"], num_hidden_layers=1, **sizes)
    weight, dense = qkv_of(loaded(quantised)), qkv_of(loaded(quantised, "float"))
    # Four bits and a scale of four bytes for 32 of them.
    assert weight.num_bytes / dense.num_bytes == pytest.approx((4 + 1) / 32, rel=0.01)


def test_families_that_store_their_matrices_transposed_say_that_codes_are_not_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "gpt2", n_layer=1)
    tensors = load_file(tmp_path / SINGLE_FILE)
    # As wide as high: its shape tells nothing.
    (name,) = (name for name in tensors if name.endswith("attn.c_proj.weight"))
    tensors[name] = torch.ones_like(tensors[name], dtype=torch.int8)
    tensors[f"{name}_scale"] = torch.ones((len(tensors[name]), 1))
    save_file(tensors, tmp_path / SINGLE_FILE)
    group = {"targets": ["re:.*attn.c_proj"], "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}}
    section = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": group}}
    edit_config(tmp_path, quantization_config=section)
    with pytest.raises(CheckpointError, match="c_proj is stored as int8: GPT2LMHeadModel is read with dense weights alone"):
        loaded(tmp_path)


def test_a_method_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "llama")
    edit_config(tmp_path, quantization_config={"quant_method": "nobodys"})
    with pytest.raises(CheckpointError, match="nobodys"):
        loaded(tmp_path)
