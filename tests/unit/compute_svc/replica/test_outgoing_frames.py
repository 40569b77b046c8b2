"""Frames to a sampler: columns that agree, in the order of what happened, within the limit of a message."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from compute_svc.replica.outgoing_frames import OutgoingFrames
from compute_svc.wire.step_output import Rows
from triserve.v1 import sampler_pb2

# Number, position, token, candidate ids.
Row: TypeAlias = tuple[int, int, int | None, list[int]]

DRAWN: Row = (1, 5, 9, [])
CANDIDATES: Row = (2, 0, None, [7, 8, 3])
BOTH: Row = (3, 1, 4, [4, 6])


def _rows(*rows: Row) -> Rows:
    """Rows of which a candidate's logit is its id and a half."""
    ids = [token for row in rows for token in row[3]]
    return Rows(
        numbers=[row[0] for row in rows],
        positions=[row[1] for row in rows],
        tokens=[row[2] for row in rows],
        num_candidates=[len(row[3]) for row in rows],
        log_sum_exp=[float(row[0]) for row in rows],
        candidate_ids=np.array(ids, dtype=np.uint32),
        candidate_logits=np.array(ids, dtype=np.float32) + np.float32(0.5),
    )


def _read(frame: sampler_pb2.SampleRequest) -> list[Row]:
    """The rows of a frame, checked to be whole."""
    ids = np.frombuffer(frame.candidate_ids, "<u4")
    assert (np.frombuffer(frame.candidate_logits, "<f4") == ids.astype(np.float32) + np.float32(0.5)).all()
    assert list(frame.log_sum_exp) == list(frame.request)
    rows: list[Row] = []
    start = 0
    for number, position, kind, token, count in zip(
        frame.request, frame.position, frame.kind, frame.token, frame.num_candidates, strict=True
    ):
        is_drawn = kind == sampler_pb2.ROW_KIND_DRAWN
        assert is_drawn or token == 0
        rows.append((number, position, token if is_drawn else None, ids[start : start + count].tolist()))
        start += count
    assert start == ids.size
    return rows


def test_nothing_waits_at_first() -> None:
    assert not OutgoingFrames()


def test_rows_go_out_as_they_came() -> None:
    frames = OutgoingFrames()
    frames.add_rows(_rows(DRAWN, CANDIDATES, BOTH))
    frame = frames.take(3)
    assert frame.frame == 3
    assert _read(frame) == [DRAWN, CANDIDATES, BOTH]
    assert not frames


def test_a_samplers_rows_are_picked_with_their_candidates() -> None:
    frames = OutgoingFrames()
    frames.add_rows(_rows(CANDIDATES, DRAWN, BOTH, (4, 0, None, [1])), [0, 2])
    assert _read(frames.take(1)) == [CANDIDATES, BOTH]


def test_steps_that_wait_go_out_together() -> None:
    frames = OutgoingFrames()
    frames.add_rows(_rows(DRAWN))
    frames.add_rows(_rows(CANDIDATES))
    assert frames.num_batches == 2
    assert _read(frames.take(1)) == [DRAWN, CANDIDATES]
    assert frames.num_batches == 0


def test_an_open_precedes_its_rows_and_a_close_follows_them_across_frames() -> None:
    frames = OutgoingFrames(max_bytes=8)
    frames.add_open(sampler_pb2.OpenRequest(request=1))
    frames.add_rows(_rows((1, 0, None, [5])))
    frames.add_rows(_rows((1, 1, None, [6])))
    frames.add_close(1)
    first, second = frames.take(1), frames.take(2)
    assert [opening.request for opening in first.open] == [1]
    assert (_read(first), _read(second)) == ([(1, 0, None, [5])], [(1, 1, None, [6])])
    assert (list(first.close), list(second.close)) == ([], [1])


def test_large_steps_are_split_between_rows() -> None:
    frames = OutgoingFrames(max_bytes=32)
    rows: list[Row] = [(number, 0, None, [number, number + 1, number + 2]) for number in range(1, 5)]
    frames.add_rows(_rows(*rows))
    taken = []
    while frames:
        taken.append(_read(frames.take(1)))
    assert [row for part in taken for row in part] == rows
    assert len(taken) == 4


def test_a_row_above_the_limit_goes_alone() -> None:
    frames = OutgoingFrames(max_bytes=8)
    frames.add_rows(_rows(DRAWN, CANDIDATES))
    assert _read(frames.take(1)) == [DRAWN, CANDIDATES]
