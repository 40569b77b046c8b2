"""Every model family there is, and how to load a checkpoint of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from compute_svc.kernels.host_memory import keep_freed_memory
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.config import ConfigFields, ModelConfig, UnsupportedModel
from compute_svc.models.families import llama, mistral, qwen2, qwen3
from compute_svc.models.loading import ModelBuilder, Progress
from compute_svc.weights import CheckpointError, open_checkpoint, read_json

FAMILIES: dict[str, Callable[[ConfigFields], ModelConfig]] = {
    family.ARCHITECTURE: family.read_config for family in (llama, mistral, qwen2, qwen3)
}

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16)


def read_model_config(folder: Path) -> ModelConfig:
    """What a checkpoint's config.json describes.

    Raises:
        UnsupportedModel: It needs something this engine does not do.
        CheckpointError: config.json is missing or malformed.
    """
    path = folder / "config.json"
    fields = ConfigFields(read_json(path), str(path))
    names = fields.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(f"{path} names no architecture")
    if names[0] not in FAMILIES:
        raise UnsupportedModel(f"{path}: architecture {names[0]} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[names[0]](fields)


def load_model(folder: Path, *, dtype: torch.dtype, device: torch.device, on_progress: Progress | None = None) -> CausalLM:
    """Loads a checkpoint.

    Args:
        folder: Holds config.json and safetensors files.
        dtype: Of weights, activations and KV: float32 or bfloat16.
        device: Where to.
        on_progress: Told bytes done and bytes in all, after every tensor.

    Effects: on a CPU, tunes the process's allocator (kernels/host_memory.py).

    Raises:
        UnsupportedModel: The checkpoint needs something this engine does not do.
        CheckpointError: A file is missing, damaged or does not fit the others.
        ValueError: The dtype is not one of the two.
    """
    if dtype not in SUPPORTED_DTYPES:
        raise ValueError(f"dtype is {dtype}; supported: {', '.join(map(str, SUPPORTED_DTYPES))}")
    config = read_model_config(folder)
    if device.type == "cpu":
        keep_freed_memory()
    with torch.inference_mode(), open_checkpoint(folder) as checkpoint:
        return ModelBuilder(config, checkpoint, dtype=dtype, device=device, on_progress=on_progress).build()
