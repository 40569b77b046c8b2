"""Ranks of a pipeline as threads of one process: each stage takes what the one before gives, and sums are over its own ranks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from compute_svc.parallel.groups.rank_group import ALONE, RankGroup
from compute_svc.parallel.groups.stage_group import Links, StageGroup
from tests.fakes.thread_ranks import ThreadRanks

T = TypeVar("T")

_TIMEOUT_S = 30.0


class ThreadStages:
    """A pipeline.

    Args:
        count: How many stages.
        tensor_size: Ranks of each.
        gives_wait: Whether giving waits until somebody takes, as a link without buffers does.
    """

    def __init__(self, count: int, *, tensor_size: int = 1, gives_wait: bool = False) -> None:
        self._gives_wait = gives_wait
        tensor = [ThreadRanks(tensor_size).groups if tensor_size > 1 else [ALONE] for _ in range(count)]
        lanes = [self._lane(count) for _ in range(tensor_size)]
        self.ranks = [(tensor[stage][rank], lanes[rank][stage]) for stage in range(count) for rank in range(tensor_size)]

    def run(self, work: Callable[[RankGroup, StageGroup], T]) -> list[T]:
        """What each rank's work gives, stage after stage; all of them work at the same time."""
        with ThreadPoolExecutor(len(self.ranks)) as pool:
            return [future.result() for future in [pool.submit(work, *rank) for rank in self.ranks]]

    def _lane(self, count: int) -> list[StageGroup]:
        inboxes: list[queue.Queue[tuple[torch.Tensor, threading.Event]]] = [queue.Queue() for _ in range(count)]

        def links(stage: int) -> Links:
            def give(tensor: torch.Tensor) -> Callable[[], object]:
                assert tensor.is_contiguous(), "links take what is contiguous"
                is_taken = threading.Event()
                inboxes[(stage + 1) % count].put((tensor, is_taken))

                def wait() -> None:
                    assert is_taken.wait(_TIMEOUT_S), "nobody takes what was given"

                if self._gives_wait:
                    wait()
                return wait

            def take(tensor: torch.Tensor) -> None:
                given, is_taken = inboxes[stage].get(timeout=_TIMEOUT_S)
                assert (given.shape, given.dtype) == (tensor.shape, tensor.dtype), "what is taken has the shape of what was given"
                tensor.copy_(given)
                is_taken.set()

            return Links(give, take)

        return [StageGroup(stage, count, links(stage)) for stage in range(count)]
