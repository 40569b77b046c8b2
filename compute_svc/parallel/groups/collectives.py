"""Sums over ranks through torch.distributed: NCCL between CUDA devices, gloo between processes of a CPU."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from compute_svc.parallel.groups.rank_group import Collectives, RankGroup


class Meeting:
    """Where the ranks of one model find each other; there is one in a process.

    Args:
        rank: This one.
        size: How many there are.
        place: A file that is not there yet, in a folder that all of them see and nobody else.
        device: Of this rank.
        timeout_s: A rank that keeps the others waiting for so long is lost.
    """

    def __init__(self, *, rank: int, size: int, place: str, device: torch.device, timeout_s: float) -> None:
        self._place = place
        self._device = device
        self._timeout = timedelta(seconds=timeout_s)
        self.group = RankGroup(rank, size, Collectives(dist.all_reduce, partial(dist.broadcast, src=0), self._gather))

    def join(self) -> None:
        """Waits until all ranks are there; nothing can be summed before.

        Raises:
            RuntimeError: They do not come.
        """
        dist.init_process_group(
            "nccl" if self._device.type == "cuda" else "gloo",
            store=dist.FileStore(self._place, self.group.size),  # type: ignore[attr-defined]  # torch's stubs do not name it
            rank=self.group.rank,
            world_size=self.group.size,
            timeout=self._timeout,
            device_id=self._device if self._device.type == "cuda" else None,
        )

    def leave(self) -> None:
        """Lets the others go; nothing can be summed any more."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.group.size)] if self.group.is_first else None
        dist.gather(part, parts)
        return parts or []
