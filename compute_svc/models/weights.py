"""Reads tensors from a folder of safetensors files, memory-mapped, or from a GGUF file in it; knows no model.

    CheckpointError: the folder cannot be used, and why

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from triserve.model_files.gguf_file import gguf_files

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Names of the format, and bytes per number.
READABLE_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message names the file or the tensor and what is wrong with it."""


class TensorInfo(NamedTuple):
    """What a file says of a tensor; dtype as the format names it, "BF16"."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Size in the file; 0 for a dtype that cannot be read."""
        return math.prod(self.shape) * READABLE_DTYPES.get(self.dtype, 0)


class Checkpoint:
    """The tensors of an open checkpoint folder, by name."""

    def __init__(self, owners: dict[str, Any]) -> None:
        """
        Args:
            owners: The open file that holds each tensor.
        """
        self._owners = owners
        self.tensors = {name: _info(owner, name) for name, owner in owners.items()}

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A copy of a tensor, converted.

        Raises:
            CheckpointError: Its dtype in the file is not a floating one of 16 bits or more, or a number in it is not finite, or not any more in `dtype`.
        """
        if self.tensors[name].dtype not in READABLE_DTYPES:
            raise CheckpointError(f"tensor {name} is stored as {self.tensors[name].dtype}; supported: {', '.join(READABLE_DTYPES)}")
        mapped: torch.Tensor = self._owners[name].get_tensor(name)
        tensor = mapped.to(dtype=dtype, copy=True)
        # Looked at where the file is mapped: a device would have to be waited for.
        if not _is_finite(tensor):
            raise CheckpointError(f"tensor {name} holds numbers that are not finite in {str(dtype).removeprefix('torch.')}")
        return tensor.to(device)


def _is_finite(tensor: torch.Tensor) -> bool:
    # A sum with anything that is not finite in it is not finite either, and costs no copy.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[Checkpoint]:
    """Opens the files of a checkpoint: one `model.safetensors`, the shards that `model.safetensors.index.json` lists, or GGUF.

    Raises:
        CheckpointError: No such files, or one is damaged, or the index is malformed or points out of the folder.
    """
    with ExitStack() as stack:
        if (folder / SINGLE_FILE).is_file():
            file = _open(folder / SINGLE_FILE, stack)
            yield Checkpoint(dict.fromkeys(file.keys(), file))
        elif (folder / INDEX_FILE).is_file():
            yield Checkpoint(_open_shards(folder, stack))
        elif gguf_files(folder):
            # Its tensors raise the errors of this module.
            from compute_svc.models.gguf.checkpoint import GgufTensors  # noqa: PLC0415

            tensors = GgufTensors(folder)
            yield Checkpoint(dict.fromkeys(tensors.keys(), tensors))
        else:
            raise CheckpointError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE} nor a GGUF file; other formats are not read")


def count_numbers(folder: Path) -> dict[str, int]:
    """How many numbers the files of a checkpoint hold of each dtype, as the format names it. Raises CheckpointError as `open_checkpoint` does."""
    counts: dict[str, int] = {}
    with open_checkpoint(folder) as checkpoint:
        for info in checkpoint.tensors.values():
            counts[info.dtype] = counts.get(info.dtype, 0) + math.prod(info.shape)
    return counts


def read_json(path: Path) -> dict[str, Any]:
    """A file that must hold one JSON object.

    Raises:
        CheckpointError: It is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path} cannot be read: it is nested too deeply") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return content


def _open_shards(folder: Path, stack: ExitStack) -> dict[str, Any]:
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX_FILE} has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{folder / INDEX_FILE} names the file {name!r}; only .safetensors files beside the index are read")
    files = {name: _open(folder / name, stack) for name in sorted(set(weight_map.values()))}
    held = {name: set(file.keys()) for name, file in files.items()}
    lost = [tensor for tensor, name in weight_map.items() if tensor not in held[name]]
    if lost:
        raise CheckpointError(f"{folder / INDEX_FILE} lists tensors their files do not hold: {listed(lost)}")
    stray = [tensor for tensors in held.values() for tensor in tensors if tensor not in weight_map]
    if stray:
        raise CheckpointError(f"{folder} holds tensors its index does not list: {listed(stray)}")
    return {tensor: files[name] for tensor, name in weight_map.items()}


def listed(names: list[str]) -> str:
    """Names for a message: the first eight and how many more."""
    shown = ", ".join(sorted(names)[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _open(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="pt", device="cpu"))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _info(owner: Any, name: str) -> TensorInfo:
    tensor = owner.get_slice(name)
    return TensorInfo(tuple(tensor.get_shape()), tensor.get_dtype())
