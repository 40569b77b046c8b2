"""Decode steps as CUDA graphs on all ranks: each has its own, sums over ranks are part of them, and all run the same one at the same time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from compute_svc.engine.steps.decode_graphs import DecodeGraphs, DecodeRows, Ids, Recorder
from compute_svc.layers.forward_batch import DecodeColumns
from compute_svc.parallel.processes.leader import Leader


class LedGraphs(DecodeGraphs):
    """The first rank's graphs, which the engine runs; the other ranks run theirs then. Tokens' ids they get on their devices, from the first one's.

    Args:
        leader: Reaches the others, which record their graphs now, too.
        decode: See `DecodeGraphs`; `CausalLM.decode` of this rank.
        max_requests: See `DecodeGraphs`.
        max_pages: See `DecodeGraphs`.
        device: See `DecodeGraphs`.
        recorder: See `DecodeGraphs`.
    """

    def __init__(
        self,
        leader: Leader,
        decode: Callable[[DecodeColumns], torch.Tensor],
        *,
        max_requests: int,
        max_pages: int,
        device: torch.device,
        recorder: Recorder,
    ) -> None:
        self._leader = leader
        leader.begin_graphs(max_pages)
        super().__init__(decode, max_requests=max_requests, max_pages=max_pages, device=device, recorder=recorder)

    def run(self, rows: DecodeRows, token_ids: Ids | torch.Tensor | None, chosen: Ids | None = None) -> torch.Tensor:
        """See `DecodeGraphs`. Raises RanksLost."""
        self._leader.decode(rows)
        try:
            return super().run(rows, token_ids, chosen)
        except Exception as error:
            raise self._leader.lost(error) from error
