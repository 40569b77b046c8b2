"""Every model family there is, and how to load a checkpoint of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from compute_svc.kernels.exact_products import use_exact_products
from compute_svc.kernels.host_memory import keep_freed_memory
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.config import ModelConfig, StreamingWindow, UnsupportedModel
from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.families import (
    baichuan,
    bloom,
    chatglm,
    falcon,
    gemma,
    glm,
    gpt2,
    gpt_neox,
    gptj,
    internlm,
    llama,
    mistral,
    mpt,
    opt,
    phi,
    qwen,
    qwen2,
)
from compute_svc.models.loading import ModelBuilder, Progress
from compute_svc.models.weight_names import WeightNames
from compute_svc.models.weights import CheckpointError, open_checkpoint, read_json

_MODULES = (llama, internlm, baichuan, mistral, qwen, qwen2, chatglm, glm, gemma, phi, falcon, bloom, mpt, opt, gpt2, gptj, gpt_neox)

FAMILIES: dict[str, Callable[[ConfigFields, str], tuple[ModelConfig, WeightNames]]] = {
    architecture: module.read for module in _MODULES for architecture in module.ARCHITECTURES
}
"""How to read the config of each architecture."""

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16)


def read_model_config(folder: Path, *, max_tokens: int | None = None, streaming: StreamingWindow | None = None) -> ModelConfig:
    """What a checkpoint's config.json describes.

    Args:
        folder: Holds it.
        max_tokens: See `load_model`.
        streaming: See `load_model`.

    Raises:
        UnsupportedModel: It needs something this engine does not do.
        CheckpointError: config.json is missing or malformed.
    """
    return _read_family(folder, max_tokens, streaming)[0]


def _read_family(folder: Path, max_tokens: int | None, streaming: StreamingWindow | None) -> tuple[ModelConfig, WeightNames]:
    path = folder / "config.json"
    fields = ConfigFields(read_json(path), str(path), max_tokens=max_tokens)
    names = fields.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(f"{path} names no architecture")
    if names[0] not in FAMILIES:
        raise UnsupportedModel(f"{path}: architecture {names[0]} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    config, tensor_names = FAMILIES[names[0]](fields, names[0])
    return config if streaming is None else config.streaming(streaming, fields.place), tensor_names


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_tokens: int | None = None,
    streaming: StreamingWindow | None = None,
    on_progress: Progress | None = None,
) -> CausalLM:
    """Loads a checkpoint.

    Args:
        folder: Holds config.json and safetensors files.
        dtype: Of weights, activations and KV: float32 or bfloat16.
        device: Where to.
        max_tokens: The longest request that will be served; None = as long as the checkpoint allows. Models with one set of rotary
            frequencies for short contexts and one for long ones take the set for this length.
        streaming: What queries see in place of everything; None = what the model was made for.
        on_progress: Told bytes done and bytes in all, after every tensor.

    Effects: on a CPU, tunes the process's allocator (kernels/host_memory.py); on CUDA, its products (kernels/exact_products.py).

    Raises:
        UnsupportedModel: The checkpoint needs something this engine does not do.
        CheckpointError: A file is missing, damaged or does not fit the others.
        ValueError: The dtype is not one of the two.
    """
    if dtype not in SUPPORTED_DTYPES:
        raise ValueError(f"dtype is {dtype}; supported: {', '.join(map(str, SUPPORTED_DTYPES))}")
    config, names = _read_family(folder, max_tokens, streaming)
    if device.type == "cpu":
        keep_freed_memory()
    elif device.type == "cuda":
        use_exact_products()
    with torch.inference_mode(), open_checkpoint(folder) as checkpoint:
        return ModelBuilder(config, names, checkpoint, dtype=dtype, device=device, on_progress=on_progress).build()
