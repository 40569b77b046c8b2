"""Graphs of decode steps on ranks: every rank computes the first one's rows with the first one's tokens, wherever these come from."""

from __future__ import annotations

import queue
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch

from compute_svc.engine.steps.decode_graphs import DecodeGraphs, DecodeRows
from compute_svc.layers.forward_batch import DecodeColumns
from compute_svc.parallel.groups.rank_group import RankGroup
from compute_svc.parallel.processes.batch_wire import decode_rows, encode_rows
from compute_svc.parallel.processes.leader import Leader, RanksLost
from compute_svc.parallel.processes.led_graphs import LedGraphs
from tests.fakes.eager_graphs import EagerRecorder
from tests.fakes.thread_ranks import ThreadRanks

CPU = torch.device("cpu")
PAGES = 3


class QueueLeader:
    """What `LedGraphs` needs of a leader, over a queue."""

    def __init__(self) -> None:
        self.told: queue.Queue[bytes | int | None] = queue.Queue()

    def begin_graphs(self, max_pages: int) -> None:
        """See `Leader`."""
        self.told.put(max_pages)

    def decode(self, rows: DecodeRows) -> None:
        """See `Leader`."""
        self.told.put(encode_rows(rows))

    def lost(self, error: Exception | None) -> RanksLost:
        """See `Leader`."""
        return RanksLost(str(error))


def _decode(columns: DecodeColumns, ranks: RankGroup) -> torch.Tensor:
    """The sum over ranks of what each makes of a row, and the last token that each has seen."""
    ranks.from_first_(columns.token_ids)
    own = torch.stack((columns.token_ids, columns.positions, columns.slots, columns.kv_lengths, columns.page_table.sum(dim=1)), dim=1)
    return ranks.sum_(own.float() * (ranks.rank + 1)).contiguous()


def _graphs(kind: type[DecodeGraphs] | None, ranks: RankGroup, leader: QueueLeader, max_pages: int) -> DecodeGraphs:
    def decode(columns: DecodeColumns) -> torch.Tensor:
        return _decode(columns, ranks)

    if kind is None:
        return LedGraphs(cast(Leader, leader), decode, max_requests=4, max_pages=max_pages, device=CPU, recorder=EagerRecorder())
    return kind(decode, max_requests=4, max_pages=max_pages, device=CPU, recorder=EagerRecorder())


def _rows(count: int) -> DecodeRows:
    numbers = np.arange(1, count + 1)
    return DecodeRows(numbers * 10, numbers * 100, numbers * 3, np.tile(numbers[:, None], (1, 2)))


def _expected(token_ids: list[int]) -> list[list[int]]:
    # Rank 0 counts once and rank 1 twice.
    return [[3 * number for number in (token, 10 * row, 100 * row, 3 * row, 2 * row)] for row, token in enumerate(token_ids, 1)]


Tokens = tuple[npt.NDArray[np.int64] | torch.Tensor, npt.NDArray[np.int64] | None]


def test_all_ranks_compute_the_first_ones_tokens() -> None:
    leader = QueueLeader()
    given: list[Tokens] = [(np.array([7, 8, 9]), None), (torch.tensor([4, 5, 6]), None), (torch.tensor([1, 2, 3, 4]), np.array([3, 0]))]

    def work(ranks: RankGroup) -> list[list[list[float]]]:
        if ranks.is_first:
            graphs = _graphs(None, ranks, leader, PAGES)
            answers = [graphs.run(_rows(2 if chosen is not None else 3), tokens, chosen).tolist() for tokens, chosen in given]
            leader.told.put(None)
            return answers
        max_pages = leader.told.get(timeout=10)
        assert max_pages == PAGES
        graphs = _graphs(DecodeGraphs, ranks, leader, PAGES)
        answers = []
        while (content := leader.told.get(timeout=10)) is not None:
            assert isinstance(content, bytes)
            answers.append(graphs.run(decode_rows(content), None).tolist())
        return answers

    first, second = ThreadRanks(2).run(work)
    assert first == second == [_expected([7, 8, 9]), _expected([4, 5, 6]), _expected([4, 1])]


def test_a_graph_that_fails_is_the_end_of_all_ranks() -> None:
    graphs = _graphs(None, RankGroup(), QueueLeader(), PAGES)
    with pytest.raises(RanksLost):
        # No rows are left over for a fifth.
        graphs.run(_rows(2), torch.tensor([1]), np.array([0, 5]))
