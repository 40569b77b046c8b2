"""Ragged columns in, rectangles out, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_svc.candidate_rows import CandidateRows
from triserve.rpc.errors import InvalidRequest


def columns(counts: list[int]) -> CandidateRows:
    """Rows of rising ids whose logits tell row and column."""
    ids = np.concatenate([np.arange(count, dtype="<u4") for count in counts] or [np.zeros(0, "<u4")])
    logits = np.concatenate([row + np.arange(count) / 1024 for row, count in enumerate(counts)] or [np.zeros(0)]).astype("<f4")
    return CandidateRows.parse(ids.tobytes(), logits.tobytes(), counts, 1000)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 70), max_size=20))
def test_rectangles_hold_every_wanted_row_once_and_whole(counts: list[int]) -> None:
    candidates = columns(counts)
    wanted = [row for row, count in enumerate(counts) if count and row % 3 != 1]
    seen = []
    for rectangle in candidates.rectangles(np.array(wanted, np.int64)):
        assert 2 * rectangle.counts.min() > rectangle.ids.shape[1] - 1
        for place, member in enumerate(rectangle.members.tolist()):
            row, count = wanted[member], int(rectangle.counts[place])
            ids, logits = candidates.row(row)
            assert count == counts[row] == candidates.count(row)
            np.testing.assert_array_equal(rectangle.ids[place, :count], ids)
            np.testing.assert_array_equal(rectangle.logits[place, :count], logits)
            assert (rectangle.logits[place, count:] == -np.inf).all()
            seen.append(row)
    assert sorted(seen) == wanted


def test_rectangles_of_wide_rows_stay_small() -> None:
    width = 20_000
    data = np.zeros(5 * width, "<u4").tobytes()
    candidates = CandidateRows.parse(data, data, [width] * 5, width)
    assert [len(rectangle.members) for rectangle in candidates.rectangles(np.arange(5))] == [2, 2, 1]


@pytest.mark.parametrize(
    ("ids", "logits", "counts", "field"),
    [
        (b"\0" * 4, b"\0" * 4, [2], "candidate_ids"),
        (b"\0" * 7, b"\0" * 8, [2], "candidate_ids"),
        (b"\0" * 8, b"\0" * 4, [2], "candidate_logits"),
        (b"", b"\0" * 4, [], "candidate_logits"),
        (b"\0" * 12, b"\0" * 12, [3], "num_candidates"),
        (b"\2\0\0\0", b"\0" * 4, [1], "candidate_ids"),
    ],
)
def test_malformed_columns_are_refused_by_name(ids: bytes, logits: bytes, counts: list[int], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        CandidateRows.parse(ids, logits, counts, 2)
    assert caught.value.field == field
