"""Rows, opens and closes that wait to be sent to one sampler, in columns."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from compute_svc.wire.step_output import Rows
from triserve.v1 import sampler_pb2

_OfRow = TypeVar("_OfRow", sampler_pb2.RowLogprobs, sampler_pb2.RowLogits)

# Well below the limit of a message; a row of 256,000 logits has 1 MB.
MAX_LOGITS_BYTES = 16 << 20


@dataclass(slots=True)
class _Part:
    """What one frame will carry."""

    open: list[sampler_pb2.OpenRequest] = field(default_factory=list)
    close: list[int] = field(default_factory=list)
    request: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    token: list[int] = field(default_factory=list)
    logprobs: list[sampler_pb2.RowLogprobs] = field(default_factory=list)
    logits: list[sampler_pb2.RowLogits] = field(default_factory=list)
    num_bytes: int = 0


class OutgoingFrames:
    """Collects what a sampler is to be told; what waits longer goes out together.

    Args:
        max_bytes: Most bytes of logits in one frame, unless one row alone has more.
    """

    def __init__(self, max_bytes: int = MAX_LOGITS_BYTES) -> None:
        self._max_bytes = max_bytes
        self._parts: deque[_Part] = deque()
        self.num_batches = 0

    def __len__(self) -> int:
        """Frames that wait."""
        return len(self._parts)

    def add_open(self, opening: sampler_pb2.OpenRequest) -> None:
        """A request begins; its rows come after this."""
        self._last(0).open.append(opening)

    def add_close(self, number: int) -> None:
        """A request ended without the sampler; its rows came before this."""
        self._last(0).close.append(number)

    def add_rows(self, rows: Rows, chosen: Sequence[int] | None = None) -> None:
        """Adds rows of one step.

        Args:
            rows: Of the step.
            chosen: Indices of the rows that are this sampler's, rising; None = all.
        """
        self.num_batches += 1
        some = rows if chosen is None else _rows_of(rows, chosen)
        if sum(len(one.logits) for one in some.logits) <= self._max_bytes:
            self._add(some)
            return
        for index in range(len(some.numbers)):
            self._add(_rows_of(some, [index]))

    def take(self, frame: int) -> sampler_pb2.SampleRequest:
        """The next frame, with that number."""
        part = self._parts.popleft()
        if not self._parts:
            self.num_batches = 0
        return sampler_pb2.SampleRequest(
            open=part.open,
            close=part.close,
            frame=frame,
            request=part.request,
            position=part.position,
            # One token in each row is said without a word.
            num_tokens=part.num_tokens if any(count != 1 for count in part.num_tokens) else (),
            token=part.token,
            logprobs=part.logprobs,
            logits=part.logits,
        )

    def _last(self, num_bytes: int) -> _Part:
        if not self._parts or (self._parts[-1].num_bytes and self._parts[-1].num_bytes + num_bytes > self._max_bytes):
            self._parts.append(_Part())
        return self._parts[-1]

    def _add(self, rows: Rows) -> None:
        num_bytes = sum(len(one.logits) for one in rows.logits)
        part = self._last(num_bytes)
        part.num_bytes += num_bytes
        first = len(part.request)
        part.request += rows.numbers.tolist()
        part.position += rows.positions.tolist()
        part.num_tokens += rows.counts.tolist()
        part.token += rows.tokens.tolist()
        part.logprobs += [_moved(one, one.row + first) for one in rows.logprobs]
        part.logits += [_moved(one, one.row + first) for one in rows.logits]


def _rows_of(rows: Rows, chosen: Sequence[int]) -> Rows:
    places = {row: place for place, row in enumerate(chosen)}
    index = np.array(chosen, dtype=np.int64)
    is_chosen = np.zeros(len(rows.numbers), dtype=np.bool_)
    is_chosen[index] = True
    return Rows(
        rows.numbers[index],
        rows.positions[index],
        rows.counts[index],
        rows.tokens[np.repeat(is_chosen, rows.counts)],
        [_moved(one, places[one.row]) for one in rows.logprobs if one.row in places],
        [_moved(one, places[one.row]) for one in rows.logits if one.row in places],
    )


def _moved(one: _OfRow, row: int) -> _OfRow:
    """The same for a row at another place."""
    if one.row == row:
        return one
    moved = type(one)()
    moved.CopyFrom(one)
    moved.row = row
    return moved
