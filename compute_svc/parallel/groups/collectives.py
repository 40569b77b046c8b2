"""Sums over ranks and hidden states between stages through torch.distributed: NCCL between CUDA devices, gloo between processes of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist

from compute_svc.parallel.groups.rank_group import ALONE, Collectives, RankGroup
from compute_svc.parallel.groups.stage_group import ONE_STAGE, Links, StageGroup


class Groups(NamedTuple):
    """What a rank is of.

    Attributes:
        everyone: All ranks of the model.
        tensor: Those of its stage, which have the other parts of its layers.
        stages: Those that have the same part of other layers.
    """

    everyone: RankGroup = ALONE
    tensor: RankGroup = ALONE
    stages: StageGroup = ONE_STAGE


class Meeting:
    """Where the ranks of one model find each other; there is one in a process.

    Args:
        rank: This one: the stage, times the ranks of a stage, and which of these.
        tensor_size: How many ranks a stage has.
        num_stages: How many stages there are.
        place: A file that is not there yet, in a folder that all of them see and nobody else.
        device: Of this rank.
        timeout_s: A rank that keeps the others waiting for so long is lost.
    """

    def __init__(self, *, rank: int, tensor_size: int, num_stages: int, place: str, device: torch.device, timeout_s: float) -> None:
        self._place = place
        self._device = device
        self._timeout = timedelta(seconds=timeout_s)
        self._tensor_size = tensor_size
        self._size = tensor_size * num_stages
        self._rank = rank
        # Made when all are there.
        self._of_stage: dist.ProcessGroup | None = None
        stage = rank // tensor_size
        everyone = RankGroup(rank, self._size, self._collectives(lambda: None, range(self._size)))
        self.groups = Groups(everyone, everyone)
        if num_stages > 1:
            ranks = self._ranks_of(stage)
            tensor = (
                RankGroup(rank - ranks.start, tensor_size, self._collectives(lambda: self._of_stage, ranks)) if tensor_size > 1 else ALONE
            )
            self.groups = Groups(everyone, tensor, StageGroup(stage, num_stages, self._links()))

    def join(self) -> None:
        """Waits until all ranks are there; nothing can be summed before.

        Raises:
            RuntimeError: They do not come.
        """
        dist.init_process_group(
            "nccl" if self._device.type == "cuda" else "gloo",
            store=dist.FileStore(self._place, self._size),  # type: ignore[attr-defined]  # torch's stubs do not name it
            rank=self._rank,
            world_size=self._size,
            timeout=self._timeout,
            device_id=self._device if self._device.type == "cuda" else None,
        )
        if 1 < self._tensor_size < self._size:
            # Every rank takes part in making every group.
            for stage in range(self._size // self._tensor_size):
                ranks = self._ranks_of(stage)
                group = dist.new_group(list(ranks), timeout=self._timeout)
                if self._rank in ranks:
                    self._of_stage = group

    def leave(self) -> None:
        """Lets the others go; nothing can be summed any more."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _ranks_of(self, stage: int) -> range:
        return range(stage * self._tensor_size, (stage + 1) * self._tensor_size)

    def _collectives(self, group: Callable[[], dist.ProcessGroup | None], ranks: range) -> Collectives:
        """Of some ranks.

        Args:
            group: Theirs, once they are there; None = that of all.
            ranks: Which, as all count them.
        """

        def gather(part: torch.Tensor) -> list[torch.Tensor]:
            part = part.contiguous()
            parts = [torch.empty_like(part) for _ in ranks] if self._rank == ranks.start else None
            dist.gather(part, parts, dst=ranks.start, group=group())
            return parts or []

        return Collectives(
            add_up=lambda tensor: dist.all_reduce(tensor, group=group()),
            spread=lambda tensor: dist.broadcast(tensor, src=ranks.start, group=group()),
            gather=gather,
        )

    def _links(self) -> Links:
        behind, before = (self._rank + self._tensor_size) % self._size, (self._rank - self._tensor_size) % self._size
        return Links(give=partial(self._give, behind), take=lambda tensor: dist.recv(tensor, src=before))

    def _give(self, rank: int, tensor: torch.Tensor) -> Callable[[], object]:
        work = dist.isend(tensor, dst=rank)
        assert work is not None, "a rank gives to another"
        return work.wait
