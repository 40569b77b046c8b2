"""Frames to a sampler: columns that agree, in the order of what happened, within the limit of a message."""

from __future__ import annotations

from itertools import islice
from typing import TypeAlias

import numpy as np

from compute_svc.replica.outgoing_frames import OutgoingFrames
from compute_svc.wire.step_output import Rows
from triserve.v1 import sampler_pb2

# Number, position, tokens, and whether the sampler gets the row's logits.
Row: TypeAlias = tuple[int, int, list[int], bool]

DRAWN: Row = (1, 5, [9], False)
UNDRAWN: Row = (2, 0, [], True)
AUDITED: Row = (3, 1, [4], True)
SEVERAL: Row = (4, 7, [1, 2, 3], False)


def _rows(*rows: Row) -> Rows:
    """Rows whose logits, a single one of four bytes, and log-probabilities are their request's number."""
    return Rows(
        numbers=np.array([row[0] for row in rows], dtype=np.uint64),
        positions=np.array([row[1] for row in rows], dtype=np.uint32),
        counts=np.array([len(row[2]) for row in rows], dtype=np.uint32),
        tokens=np.array([token for row in rows for token in row[2]], dtype=np.uint32),
        logprobs=[sampler_pb2.RowLogprobs(row=index, logprob=[-row[0]] * len(row[2])) for index, row in enumerate(rows) if row[2]],
        logits=[sampler_pb2.RowLogits(row=index, logits=np.float32(row[0]).tobytes()) for index, row in enumerate(rows) if row[3]],
    )


def _read(frame: sampler_pb2.SampleRequest) -> list[Row]:
    """The rows of a frame, checked to be whole."""
    tokens = iter(frame.token)
    logits = {one.row: one.logits for one in frame.logits}
    logprobs = {one.row: list(one.logprob) for one in frame.logprobs}
    assert [one.row for one in frame.logits] == sorted(logits) and [one.row for one in frame.logprobs] == sorted(logprobs)
    rows: list[Row] = []
    for index, (number, position, count) in enumerate(
        zip(frame.request, frame.position, frame.num_tokens or [1] * len(frame.request), strict=True)
    ):
        assert index not in logits or logits[index] == np.float32(number).tobytes()
        assert logprobs.get(index, []) == [-number] * count
        rows.append((number, position, list(islice(tokens, count)), index in logits))
    assert next(tokens, None) is None and max([-1, *logits, *logprobs]) < len(rows)
    return rows


def test_nothing_waits_at_first() -> None:
    assert not OutgoingFrames()


def test_rows_go_out_as_they_came() -> None:
    frames = OutgoingFrames()
    frames.add_rows(_rows(DRAWN, UNDRAWN, AUDITED, SEVERAL))
    frame = frames.take(3)
    assert frame.frame == 3
    assert _read(frame) == [DRAWN, UNDRAWN, AUDITED, SEVERAL]
    assert not frames


def test_a_samplers_rows_are_picked_with_what_is_theirs() -> None:
    frames = OutgoingFrames()
    frames.add_rows(_rows(UNDRAWN, DRAWN, AUDITED, SEVERAL).chosen([0, 2]))
    assert _read(frames.take(1)) == [UNDRAWN, AUDITED]


def test_one_token_in_every_row_is_said_without_a_column() -> None:
    frames = OutgoingFrames()
    frames.add_rows(_rows(DRAWN, AUDITED))
    assert not frames.take(1).num_tokens


def test_steps_that_wait_go_out_together() -> None:
    frames = OutgoingFrames()
    frames.add_rows(_rows(DRAWN))
    frames.add_rows(_rows(UNDRAWN))
    assert frames.num_batches == 2
    assert _read(frames.take(1)) == [DRAWN, UNDRAWN]
    assert frames.num_batches == 0


def test_an_open_precedes_its_rows_and_a_close_follows_them_across_frames() -> None:
    frames = OutgoingFrames(max_bytes=4)
    frames.add_open(sampler_pb2.OpenRequest(request=1))
    frames.add_rows(_rows((1, 0, [], True)))
    frames.add_rows(_rows((1, 1, [], True)))
    frames.add_close(1)
    first, second = frames.take(1), frames.take(2)
    assert [opening.request for opening in first.open] == [1]
    assert (_read(first), _read(second)) == ([(1, 0, [], True)], [(1, 1, [], True)])
    assert (list(first.close), list(second.close)) == ([], [1])


def test_large_steps_are_split_between_rows() -> None:
    frames = OutgoingFrames(max_bytes=7)
    rows: list[Row] = [(number, 0, [], True) for number in range(1, 5)]
    frames.add_rows(_rows(*rows))
    taken = []
    while frames:
        taken.append(_read(frames.take(1)))
    assert [row for part in taken for row in part] == rows
    assert len(taken) == 4


def test_a_row_above_the_limit_goes_alone() -> None:
    frames = OutgoingFrames(max_bytes=3)
    frames.add_rows(_rows(DRAWN, UNDRAWN))
    assert _read(frames.take(1)) == [DRAWN, UNDRAWN]
