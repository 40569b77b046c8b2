"""Writes tensors into safetensors files of bounded size, one file's worth in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from compute_svc.models.weights import INDEX_FILE, SINGLE_FILE

_MAX_FILE_BYTES = 4 << 30


def write_tensors(
    sizes: Mapping[str, int], read: Callable[[str], torch.Tensor], folder: Path, *, max_file_bytes: int = _MAX_FILE_BYTES
) -> None:
    """Writes one `model.safetensors`, or several files and their index.

    Args:
        sizes: Bytes of each tensor as it will be written.
        read: Reads one.
        folder: Where to; must exist.
        max_file_bytes: A file holds more only for a single tensor that is larger.

    Raises:
        OSError: The folder cannot be written.
    """
    files = _parts(sizes, max_file_bytes)
    if len(files) == 1:
        save_file({name: read(name) for name in files[0]}, folder / SINGLE_FILE, metadata={"format": "pt"})
        return
    weight_map = {}
    for number, names in enumerate(files, 1):
        file_name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file({name: read(name) for name in names}, folder / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file_name))
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _parts(sizes: Mapping[str, int], max_file_bytes: int) -> list[list[str]]:
    """The names of each file's tensors, in order."""
    parts: list[list[str]] = [[]]
    taken = 0
    for name, size in sizes.items():
        if parts[-1] and taken + size > max_file_bytes:
            parts.append([])
            taken = 0
        parts[-1].append(name)
        taken += size
    return parts


def float32_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Bytes of float32 tensors of these shapes."""
    return {name: 4 * math.prod(shape) for name, shape in shapes.items()}
