"""Copies between host and device: few, packed, and none that the host waits for without need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ids = npt.NDArray[np.int64]


def to_device(arrays: Sequence[Ids], device: torch.device) -> list[torch.Tensor]:
    """Copies of host arrays, in one transfer that the host does not wait for.

    They go through pinned memory that is new each time. torch gives pinned memory out again only when the copies from it are done, so a
    caller may fill its own arrays again at once.

    Args:
        arrays: Of any shapes, int64.
        device: Where to.

    Returns:
        As many int64 tensors of the same shapes, views of one.
    """
    sizes = [array.size for array in arrays]
    staged = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
    words, start = staged.numpy(), 0
    for array, size in zip(arrays, sizes, strict=True):
        words[start : start + size] = array.reshape(-1)
        start += size
    parts = torch.split(staged.to(device, non_blocking=True), sizes)
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


class PendingRead:
    """What tensors of a device hold, on its way to the host.

    What is given to the device from now on, the read does not wait for.

    Args:
        tensors: [rows, columns] each, float32 or int64, as many rows in all of them. Integers fit into 32 bits.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors = tensors
        self._event: torch.cuda.Event | None = None
        if tensors[0].device.type == "cpu":
            return
        words = torch.cat(
            [one.contiguous().view(torch.int32) if one.dtype == torch.float32 else one.to(torch.int32) for one in tensors], dim=1
        )
        if words.device.type == "cuda":
            self._words = torch.empty(words.shape, dtype=torch.int32, pin_memory=True)
            self._words.copy_(words, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's events have no types
            self._event.record()
        else:
            self._words = words.cpu()

    def take(self) -> list[npt.NDArray[Any]]:
        """Waits; an array for each tensor, of the same shape and dtype, on a CPU of the same memory."""
        if self._tensors[0].device.type == "cpu":
            return [one.numpy() for one in self._tensors]
        if self._event is not None:
            self._event.synchronize()
        parts = np.split(self._words.numpy(), np.cumsum([one.shape[1] for one in self._tensors])[:-1], axis=1)
        return [
            np.ascontiguousarray(part).view(np.float32) if one.dtype == torch.float32 else part.astype(np.int64)
            for one, part in zip(self._tensors, parts, strict=True)
        ]


def rows_of(values: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """[len(rows), ...]: some rows of a tensor, new memory; their numbers reach a device without a wait."""
    if values.device.type == "cpu":
        return values[list(rows)]
    return values.index_select(0, to_device([np.array(rows, dtype=np.int64)], values.device)[0])
