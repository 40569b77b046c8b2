"""Which architectures are read from which block formats of GGUF: `python -m tests.gguf_table` compares all and writes the table.

In each cell a small random model whose matrices are all stored in the format is loaded from the GGUF file and from safetensors that hold the
numbers its blocks stand for; equal means that every logit is the same bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from compute_svc.convert import convert_gguf
from compute_svc.models.registry import load_model
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.forward_driver import ForwardDriver
from tests.fakes.gguf_files import write_gguf
from tests.fakes.gguf_packing import FORMATS, packing
from tests.oracle.references import baichuan, internlm2
from tests.oracle.references.baichuan import Baichuan
from tests.oracle.references.internlm2 import InternLm2

RESULTS = Path(__file__).parent / "bench" / "results" / "gguf_table.json"

_TOKENS = [3, 77, 12, 90, 5, 41, 0, 66]
# A block has up to 256 weights: rows must be whole ones.
_SIZES = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 64}
_GPT = {"n_embd": 256, "n_layer": 2, "n_head": 4}
_EXPERTS = {"num_experts": 3, "moe_intermediate_size": 256}
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "llama (experts)": ("mixtral", {**_GROUPED, "num_local_experts": 3}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen2moe": ("qwen2_moe", {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 256}),
    "qwen3": ("qwen3", _GROUPED),
    "qwen3moe": ("qwen3_moe", {**_GROUPED, **_EXPERTS, "norm_topk_prob": True}),
    "gemma": ("gemma", _GROUPED),
    "gemma2": ("gemma2", {**_GROUPED, "query_pre_attn_scalar": 64, "sliding_window": 5}),
    "gemma3": ("gemma3_text", {**_GROUPED, "query_pre_attn_scalar": 64, "sliding_window": 5}),
    "phi3": ("phi3", {**_SIZES, "num_key_value_heads": 2}),
    "gpt2": ("gpt2", _GPT),
    "starcoder": ("gpt_bigcode", _GPT),
    "falcon": ("falcon", {**_SIZES, "intermediate_size": ..., "num_kv_heads": 2, "new_decoder_architecture": True}),
    "bloom": ("bloom", {"hidden_size": 256, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 256, "n_layers": 2, "n_heads": 4}),
    "gptneox": ("gpt_neox", {**_SIZES, "rotary_pct": 0.5}),
    "chatglm": ("glm", {**_GROUPED, "attention_bias": True}),
    "glm4": ("glm4", {**_GROUPED, "attention_bias": False}),
}
_WRITTEN = ("internlm2", "baichuan")

ARCHITECTURES = (*_MODELS, *_WRITTEN)
"""The rows of the table."""


def is_equal(architecture: str, formats: Iterable[str], folder: Path) -> bool:
    """Whether a model computes the same from GGUF and from safetensors.

    Args:
        architecture: One of ARCHITECTURES.
        formats: Of its matrices, by turns.
        folder: An empty one.
    """
    published, converted = folder / "published", folder / "converted"
    published.mkdir()
    converted.mkdir()
    if architecture in _MODELS:
        family, sizes = _MODELS[architecture]
        save_checkpoint(published, family, **sizes)
    else:
        _save_written(architecture, published)
    write_gguf(published, folder / "model.gguf", pack=packing(formats))
    convert_gguf(folder / "model.gguf", converted, safetensors=False)
    return torch.equal(_logits(published), _logits(converted))


def _save_written(architecture: str, folder: Path) -> None:
    with _wide(baichuan), _wide(internlm2):
        if architecture == "baichuan":
            Baichuan("BaiChuanForCausalLM", generation=1, size="7B", heads=4).save(folder)
        else:
            InternLm2("InternLM2ForCausalLM", heads=4).save(folder)


@contextlib.contextmanager
def _wide(reference: Any) -> Iterator[None]:
    with mock.patch.multiple(reference, _HIDDEN=256, _FFN=256):
        yield


def _logits(folder: Path) -> torch.Tensor:
    # Blocks of integers are multiplied as such otherwise, by activations that are rounded.
    driver = ForwardDriver(load_model(folder, dtype=torch.float32, device=torch.device("cpu"), activations="float"))
    with torch.inference_mode():
        return driver.step([], [(driver.request(_TOKENS, len(_TOKENS)), len(_TOKENS))], all_logits=True)


def main() -> None:
    """Compares everything and writes the results; ends with status 1 if something differs."""
    table: dict[str, dict[str, str]] = {}
    for architecture in ARCHITECTURES:
        table[architecture] = {}
        for block_format in FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                table[architecture][block_format] = "equal" if is_equal(architecture, [block_format], Path(folder)) else "differs"
        sys.stdout.write(f"{architecture:16} {' '.join(f'{name}:{result}' for name, result in table[architecture].items())}\n")
    RESULTS.write_text(json.dumps(table, indent=1) + "\n")
    if any(result != "equal" for row in table.values() for result in row.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
