"""What room a device has for keys and values: all figures but the one that is wanted are measured, so that no step asks for more than there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

# Rows of logits of all requests that outlive a step: counts for penalties, which are copied as they grow, rows that wait for what can be drawn,
# and those computed ahead, picked and joined with others.
_KEPT_ROWS = 6
_FLOAT32_BYTES = 4
# What a graph that draws is told of a row, in numbers, and what it takes to draw, at the most, of each logit.
_COLUMNS, _DRAW_BYTES = 12, 2
_INT64_BYTES = 8


class DeviceMemory(Protocol):
    """The memory of a device, as whoever divides it up sees it."""

    @property
    def total_bytes(self) -> int:
        """Of the device."""
        ...

    def free_bytes(self) -> int:
        """What nobody has: no tensor, nothing that the process keeps for tensors to come, no other process.

        Effects: what the process keeps for tensors to come is given back.
        """
        ...

    def tensor_bytes(self) -> int:
        """What tensors of this process take now."""
        ...

    def reset_peak(self) -> None:
        """Begins to look for `peak_bytes` anew."""
        ...

    def peak_bytes(self) -> int:
        """The most that tensors of this process took at once since then."""
        ...


class CudaMemory:
    """Implements `DeviceMemory` for a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def total_bytes(self) -> int:
        """See `DeviceMemory`."""
        return torch.cuda.mem_get_info(self._device)[1]

    def free_bytes(self) -> int:
        """See `DeviceMemory`."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def tensor_bytes(self) -> int:
        """See `DeviceMemory`."""
        return torch.cuda.memory_allocated(self._device)

    def reset_peak(self) -> None:
        """See `DeviceMemory`."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        """See `DeviceMemory`."""
        return torch.cuda.max_memory_allocated(self._device)


class MemoryFigures(NamedTuple):
    """Of a device on which a model is loaded.

    Attributes:
        total_bytes: Of the device.
        taken_bytes: By weights, by CUDA itself and by other processes.
        step_bytes: The most that a step takes besides, and what outlives it.
        graph_bytes: Of CUDA graphs; 0 = there are none.
    """

    total_bytes: int
    taken_bytes: int
    step_bytes: int
    graph_bytes: int

    def room(self, share: float) -> int:
        """Bytes for keys and values; below zero if there is less than none.

        Args:
            share: Of the device's memory, what all that is counted here may have together. The rest is for what is not: gaps between tensors,
                code of kernels, graphs' own bookkeeping.
        """
        return int(self.total_bytes * share) - self.taken_bytes - self.step_bytes - self.graph_bytes

    def described(self, share: float) -> str:
        """All of them, for the log and for who set too much."""
        graphs = f", {self.graph_bytes} for CUDA graphs" if self.graph_bytes else ""
        return (
            f"{share:g} (COMPUTE_DEVICE_MEMORY_SHARE) of {self.total_bytes} bytes, less {self.taken_bytes} that weights and others take, "
            f"{self.step_bytes} for a step{graphs}"
        )


def kv_bytes_of(wanted: int | None, figures: MemoryFigures, share: float) -> int:
    """How many bytes keys and values get.

    Args:
        wanted: The setting; None = all the room that there is.
        figures: Of the device.
        share: See `MemoryFigures.room`.

    Raises:
        ValueError: There is not so much room, or none; tells the figures, and what can be set.
    """
    room = figures.room(share)
    if room <= 0:
        raise ValueError(
            f"the device has no room for keys and values: {figures.described(share)}. Lower COMPUTE_STEP_BUDGET_TOKENS, "
            "COMPUTE_MAX_RUNNING_REQUESTS or COMPUTE_MAX_MODEL_LEN_TOKENS"
        )
    if wanted is not None and wanted > room:
        raise ValueError(f"COMPUTE_KV_CACHE_BYTES is {wanted}, the limit is the room on the device, {room}: {figures.described(share)}")
    return room if wanted is None else wanted


def kept_bytes(max_requests: int, width: int) -> int:
    """What outlives steps besides keys and values, at the most, for so many requests and so wide logits."""
    return _KEPT_ROWS * max_requests * width * _FLOAT32_BYTES


def graph_bytes(peak_bytes: int, sizes: Sequence[int], width: int, max_pages: int) -> int:
    """What graphs of decode steps keep.

    They share what the largest takes while it runs, but for their results, which stay.

    Args:
        peak_bytes: The most that the largest takes, its result included.
        sizes: Rows of each, rising.
        width: Of logits.
        max_pages: Of a request.
    """
    results = sum(sizes[:-1]) * width * _FLOAT32_BYTES
    inputs = sizes[-1] * (_COLUMNS + max_pages) * _INT64_BYTES
    drawing = sizes[-1] * width * _DRAW_BYTES
    return peak_bytes + results + inputs + drawing
