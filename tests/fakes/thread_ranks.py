"""Ranks as threads of one process: the sums are real, and no process has to be started for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from compute_svc.parallel.groups.rank_group import Collectives, RankGroup

T = TypeVar("T")

_TIMEOUT_S = 30.0


class ThreadRanks:
    """A group of ranks.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=_TIMEOUT_S)
        self._parts: list[torch.Tensor] = [torch.empty(0)] * size
        self.groups = [RankGroup(rank, size, self._collectives(rank)) for rank in range(size)]

    def run(self, work: Callable[[RankGroup], T]) -> list[T]:
        """What each rank's work gives; all of them work at the same time."""
        with ThreadPoolExecutor(len(self.groups)) as pool:
            return [future.result() for future in [pool.submit(self._work, work, group) for group in self.groups]]

    def _work(self, work: Callable[[RankGroup], T], group: RankGroup) -> T:
        try:
            return work(group)
        except BaseException:
            # Nobody waits for one that has failed.
            self._barrier.abort()
            raise

    def _collectives(self, rank: int) -> Collectives:
        def meet(part: torch.Tensor) -> list[torch.Tensor]:
            self._parts[rank] = part.clone()
            self._barrier.wait()
            parts = list(self._parts)
            self._barrier.wait()
            return parts

        def add_up(part: torch.Tensor) -> None:
            assert part.is_contiguous(), "collectives take what is contiguous"
            part.copy_(torch.stack(meet(part)).sum(dim=0))

        def spread(part: torch.Tensor) -> None:
            part.copy_(meet(part)[0])

        def gather(part: torch.Tensor) -> list[torch.Tensor]:
            parts = meet(part)
            return parts if rank == 0 else []

        return Collectives(add_up, spread, gather)
