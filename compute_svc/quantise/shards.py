"""Writes tensors into safetensors files as they come, one file's worth in memory at a time."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from compute_svc.models.weights import INDEX_FILE, SINGLE_FILE

_MAX_FILE_BYTES = 1 << 30


class ShardWriter:
    """One `model.safetensors`, or several files and their index; complete once `close` returns.

    Args:
        folder: Where to; must exist.
        max_file_bytes: A file holds more only for a single tensor that is larger.
    """

    def __init__(self, folder: Path, *, max_file_bytes: int = _MAX_FILE_BYTES) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self._names: list[list[str]] = []
        self.num_bytes = 0

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        """Takes tensors, each with memory of its own. Raises OSError if the folder cannot be written."""
        for name, tensor in tensors.items():
            if self._waiting and sum(one.nbytes for one in self._waiting.values()) + tensor.nbytes > self._max_file_bytes:
                self._write()
            self._waiting[name] = tensor
            self.num_bytes += tensor.nbytes

    def close(self) -> None:
        """Writes what is left, and the index. Raises OSError if the folder cannot be written."""
        if self._waiting or not self._names:
            self._write()
        if len(self._names) == 1:
            self._part(0).rename(self._folder / SINGLE_FILE)
            return
        weight_map = {}
        for number, names in enumerate(self._names):
            file_name = f"model-{number + 1:05d}-of-{len(self._names):05d}.safetensors"
            self._part(number).rename(self._folder / file_name)
            weight_map.update(dict.fromkeys(names, file_name))
        index = {"metadata": {"total_size": self.num_bytes}, "weight_map": weight_map}
        (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _write(self) -> None:
        path = self._part(len(self._names))
        save_file(self._waiting, path, metadata={"format": "pt"})
        # Weights are no secret, and whoever serves them may be another user.
        path.chmod(0o644)
        self._names.append(list(self._waiting))
        self._waiting = {}

    def _part(self, number: int) -> Path:
        # How many there will be is not known yet.
        return self._folder / f".part-{number}"
