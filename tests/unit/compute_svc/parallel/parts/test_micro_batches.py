"""The parts of a step compute together, one after the other, what the whole step does."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.layers.forward_batch import ForwardBatch, begun_pages
from compute_svc.parallel.parts.micro_batches import least_tokens, micro_batches


def _batch(page_size: int, decodes: list[int], prompts: list[tuple[int, int]]) -> ForwardBatch:
    """Requests with so many tokens in pages: decode rows, then prompts that bring some more."""
    before = [*decodes, *(length for length, _ in prompts)]
    lengths = [1] * len(decodes) + [length for _, length in prompts]
    ends = [first + length for first, length in zip(before, lengths, strict=True)]
    width = max(-(-end // page_size) for end in ends)
    # Page 0 is nobody's: rows of the table end in it.
    table = np.zeros((len(ends), width), dtype=np.int64)
    next_page = 1
    for row, end in zip(table, ends, strict=True):
        count = -(-end // page_size)
        row[:count] = np.arange(next_page, next_page + count)
        next_page += count
    positions = np.concatenate([np.arange(first, end) for first, end in zip(before, ends, strict=True)])
    owners = np.repeat(np.arange(len(ends)), lengths)
    starts = (0, *accumulate(lengths))
    return ForwardBatch(
        token_ids=torch.arange(starts[-1]) + 1000,
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(table[owners, positions // page_size] * page_size + positions % page_size),
        num_decodes=len(decodes),
        query_starts=starts,
        kv_lengths=tuple(ends),
        page_table=torch.from_numpy(table),
        logit_rows=torch.tensor(starts[1:]) - 1,
        begun_pages=torch.from_numpy(begun_pages(table, lengths, ends, page_size)),
        position_limit=max(ends),
        hidden_rows=torch.arange(starts[-1]),
    )


LENGTHS = st.integers(0, 30)


@given(
    page_size=st.integers(1, 8),
    decodes=st.lists(LENGTHS, max_size=6),
    prompts=st.lists(st.tuples(LENGTHS, st.integers(1, 40)), max_size=4),
    most=st.integers(1, 5),
    least=st.integers(1, 24),
)
def test_every_token_is_in_one_part_and_finds_what_came_before_it(
    page_size: int, decodes: list[int], prompts: list[tuple[int, int]], most: int, least: int
) -> None:
    if not decodes and not prompts:
        return
    batch = _batch(page_size, decodes, prompts)
    parts = micro_batches(batch, most, page_size, least)
    sizes = [part.num_tokens for part in parts]
    assert len(parts) == max(1, min(most, batch.num_tokens // least)) and max(sizes) - min(sizes) <= 1
    for name in ("token_ids", "positions", "slots"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)), name
    assert sum(part.num_decodes for part in parts) == batch.num_decodes
    # What is in a slot: a token, something finite, or what its last owner left.
    pages = int(batch.page_table.max()) + 1
    written, is_finite = np.zeros((2, pages * page_size), dtype=bool)
    for row, end, (start, stop) in zip(batch.page_table, batch.kv_lengths, pairwise(batch.query_starts), strict=True):
        before = end - (stop - start)
        written[_slots(row, before, page_size)] = True
        is_finite[_slots(row, -(-before // page_size) * page_size, page_size)] = True
    for part in parts:
        cleared = (part.begun_pages[:, None] * page_size + torch.arange(page_size)).flatten().numpy()
        assert not written[cleared].any(), "nothing that is there is cleared"
        is_finite[cleared] = True
        written[part.slots.numpy()] = is_finite[part.slots.numpy()] = True
        _assert_finds_all(part, page_size, written, is_finite)


def _assert_finds_all(part: ForwardBatch, page_size: int, written: np.ndarray, is_finite: np.ndarray) -> None:
    assert part.num_requests == len(part.page_table) and part.num_decodes <= part.num_requests
    for index, (start, stop) in enumerate(pairwise(part.query_starts)):
        row, end = part.page_table[index], part.kv_lengths[index]
        assert 0 < stop - start <= (1 if index < part.num_decodes else end)
        places = _slots(row, end, page_size)
        assert part.slots[start:stop].tolist() == places[end - (stop - start) :].tolist()
        assert written[places].all(), "all tokens up to the last are there"
        assert is_finite[_slots(row, -(-end // page_size) * page_size, page_size)].all(), "so is what attention reads behind it"


def _slots(row: torch.Tensor, length: int, page_size: int) -> np.ndarray:
    """Of a request's first tokens."""
    places = np.arange(length)
    return np.asarray(row.numpy()[places // page_size] * page_size + places % page_size)


def test_a_step_that_only_reads_weights_is_not_cut() -> None:
    batch = _batch(4, [5] * 15, [])
    assert len(micro_batches(batch, 2, 4, least_tokens("cpu"))) == 1
    assert [part.num_requests for part in micro_batches(_batch(4, [5] * 16, []), 2, 4, least_tokens("cpu"))] == [8, 8]
    assert least_tokens("cuda") > least_tokens("cpu")


def test_parts_ask_for_no_logits_and_no_vectors() -> None:
    for part in micro_batches(_batch(4, [3, 9], [(0, 20)]), 2, 4, 1):
        assert len(part.logit_rows) == 0 and part.hidden_rows is None
