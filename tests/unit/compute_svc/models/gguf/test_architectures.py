"""A model computes the same bits from a GGUF file as from the safetensors it was converted from, whatever conversion did to its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from compute_svc.convert import convert_gguf
from compute_svc.models.gguf.model import read_model
from compute_svc.models.gguf.recipes import Recipe
from compute_svc.models.registry import load_model
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.forward_driver import ForwardDriver
from tests.fakes.gguf_files import finish, write_gguf
from tests.oracle.references import CASES, baichuan
from tests.oracle.references.baichuan import Baichuan
from tests.oracle.references.chatglm import ChatGlm
from tests.oracle.references.internlm2 import InternLm2
from triserve.model_files.gguf_file import open_gguf
from triserve.model_files.gguf_header import GgufError

TOKENS = [3, 77, 12, 12, 90, 5, 41, 0, 66, 23, 8, 31, 59, 2, 2, 17]

_LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.25, 1.5, 2.0],
    "long_factor": [2.0, 3.0, 4.0, 6.0],
    "original_max_position_embeddings": 64,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-mha": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    "llama-biases-mqa": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "llama3": ("llama", {"head_dim": 20, "rope_parameters": {**_LLAMA3, "original_max_position_embeddings": 8192}}),
    "llama-linear": ("llama", {"rope_parameters": _LINEAR}),
    "llama-yarn": ("llama", {"head_dim": 16, "rope_parameters": _YARN}),
    "mixtral": ("mixtral", {}),
    "qwen2": ("qwen2", {"head_dim": ...}),
    "qwen2moe": ("qwen2_moe", {}),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 9}),
    "gemma3": ("gemma3_text", {"num_hidden_layers": 6, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 9}),
    "phi3": ("phi3", {"sliding_window": 11}),
    "phi3-partly-turning": (
        "phi3",
        {"num_key_value_heads": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
    "phi3-longrope": ("phi3", {"original_max_position_embeddings": 64, "rope_parameters": _LONGROPE}),
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": 70}),
    "starcoder": ("gpt_bigcode", {}),
    "falcon-7b": ("falcon", {}),
    "falcon-40b": ("falcon", {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon-11b": (
        "falcon",
        {"num_kv_heads": 3, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
    ),
    "bloom": ("bloom", {}),
    "mpt": ("mpt", {}),
    "mpt-clipped": ("mpt", {"n_heads": 4, "attn_config": {"clip_qkv": 1.0}}),
    "gptneox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gptneox-serial-without-biases": ("gpt_neox", {"attention_bias": False, "use_parallel_residual": False}),
    "glm": ("glm", {"attention_bias": True}),
    "glm4": ("glm4", {"attention_bias": False}),
}
# No release has biases everywhere, nor do llama.cpp's graphs of the family know them; one whose positions are divided cannot say so in GGUF.
WRITTEN = {
    case.name: case
    for case in CASES
    if case.streaming is None and case.family in (ChatGlm, Baichuan, InternLm2) and case.name not in ("chatglm-all-biases", "chatglm-2-32k")
}


def logits(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = load_model(folder, dtype=dtype, device=torch.device("cpu"))
    driver = ForwardDriver(model)
    with torch.inference_mode():
        return driver.step([], [(driver.request(TOKENS, len(TOKENS)), len(TOKENS))], all_logits=True)


def assert_same_bits(folder: Path, tmp_path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    write_gguf(folder, tmp_path / "model.gguf")
    converted = tmp_path / "converted"
    converted.mkdir()
    convert_gguf(tmp_path / "model.gguf", converted, safetensors=False)
    torch.testing.assert_close(logits(converted, dtype), logits(folder, dtype), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_from_gguf_are_those_from_safetensors_bit_for_bit(name: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[name]
    folder = tmp_path / "published"
    folder.mkdir()
    save_checkpoint(folder, family, **overrides)
    assert_same_bits(folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_families_of_written_references_are_read_bit_for_bit_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    if "13b" in name:
        # What tells it from a 7B in GGUF.
        monkeypatch.setattr(baichuan, "_LAYERS", 40)
    WRITTEN[name].build().save(folder)
    assert_same_bits(folder, tmp_path)


def test_rows_are_told_apart_by_what_they_are_not_by_luck(tmp_path: Path) -> None:
    # Without the order of its rows a Llama computes something else: equality above means that it was undone.
    folder = tmp_path / "published"
    folder.mkdir()
    save_checkpoint(folder, "llama")
    write_gguf(folder, tmp_path / "model.gguf")
    model = read_model(open_gguf(tmp_path / "model.gguf"))
    name = "model.layers.0.self_attn.q_proj.weight"
    (part,), right = model.recipes[name].parts, model.recipes[name].read()
    assert not (Recipe(right.shape, (part._replace(order=None),)).read() == right).all()


def test_an_architecture_that_is_not_read_is_refused_with_those_that_are(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    finish(writer)
    with pytest.raises(GgufError, match=r"'mamba' is not supported; supported: baichuan, bloom, chatglm.*starcoder"):
        read_model(open_gguf(tmp_path / "model.gguf"))


@pytest.mark.parametrize("name", ["chatglm2-6b-32k", "ChatGLM2 6B 32K", "chatglm2_6b_32k"])
def test_a_chatglm_whose_positions_are_divided_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    WRITTEN["chatglm-two-groups"].build().save(folder)
    write_gguf(folder, tmp_path / "model.gguf", metadata={"general.name": name})
    with pytest.raises(GgufError, match="divides its positions"):
        read_model(open_gguf(tmp_path / "model.gguf"))


def test_a_tensor_nobody_uses_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    save_checkpoint(folder, "qwen2", head_dim=...)
    write_gguf(folder, tmp_path / "model.gguf", extra={"blk.0.attn_sub_norm.weight": np.ones(48, np.float32)})
    with pytest.raises(GgufError, match=r"not known to have: blk\.0\.attn_sub_norm\.weight"):
        read_model(open_gguf(tmp_path / "model.gguf"))


def test_scaling_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    save_checkpoint(folder, "qwen2", head_dim=...)
    write_gguf(folder, tmp_path / "model.gguf", metadata={"qwen2.rope.scaling.type": "longrope"})
    with pytest.raises(GgufError, match=r"rope\.scaling\.type 'longrope' is not supported here"):
        read_model(open_gguf(tmp_path / "model.gguf"))


def test_llama3_frequencies_of_other_lengths_are_found_by_fitting_them(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    save_checkpoint(folder, "llama", head_dim=40, rope_parameters={**_LLAMA3, "original_max_position_embeddings": 128})
    write_gguf(folder, tmp_path / "model.gguf")
    rope = read_model(open_gguf(tmp_path / "model.gguf")).config["rope_parameters"]
    assert rope["factor"] == 8.0
    lengths = [rope["original_max_position_embeddings"] / rope[name] for name in ("low_freq_factor", "high_freq_factor")]
    np.testing.assert_allclose(lengths, [128.0, 32.0], rtol=1e-4)


def test_safetensors_written_of_a_gguf_file_are_the_same_model(tmp_path: Path) -> None:
    folder, converted = tmp_path / "published", tmp_path / "converted"
    folder.mkdir()
    converted.mkdir()
    save_checkpoint(folder, "llama")
    write_gguf(folder, tmp_path / "model.gguf")
    convert_gguf(tmp_path / "model.gguf", converted, safetensors=True)
    assert {path.name for path in converted.iterdir()} == {"config.json", "model.safetensors"}
    torch.testing.assert_close(logits(converted), logits(folder), rtol=0, atol=0)


def test_metadata_that_would_change_answers_are_refused_and_others_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    save_checkpoint(folder, "llama")
    write_gguf(folder, tmp_path / "model.gguf", metadata={"llama.logit_scale": 0.5})
    with pytest.raises(GgufError, match=r"llama\.logit_scale is not supported"):
        read_model(open_gguf(tmp_path / "model.gguf"))
    for neutral in ({"llama.logit_scale": 1.0}, {"llama.logit_scale": 0.0}, {"llama.attention.causal": True}):
        write_gguf(folder, tmp_path / "model.gguf", metadata=neutral)
        read_model(open_gguf(tmp_path / "model.gguf"))
    write_gguf(folder, tmp_path / "model.gguf", metadata={"llama.attention.causal": False})
    with pytest.raises(GgufError, match=r"llama\.attention\.causal is not supported"):
        read_model(open_gguf(tmp_path / "model.gguf"))
    write_gguf(folder, tmp_path / "other.gguf", metadata={"llama.attention.sliding_window": 4096, "llama.vocab_size": 97})
    converted = tmp_path / "converted"
    converted.mkdir()
    capsys.readouterr()
    convert_gguf(tmp_path / "other.gguf", converted, safetensors=False)
    assert capsys.readouterr().err == "not used of other.gguf: llama.attention.sliding_window\n"
