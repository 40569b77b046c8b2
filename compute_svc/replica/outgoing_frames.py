"""Rows, opens and closes that wait to be sent to one sampler, in columns."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from compute_svc.wire.step_output import Rows
from triserve.v1 import sampler_pb2

# Well below the limit of a message; a row of 256,000 logits has 2 MB.
MAX_CANDIDATE_BYTES = 16 << 20
_BYTES_PER_CANDIDATE = 8


@dataclass(slots=True)
class _Part:
    """What one frame will carry."""

    open: list[sampler_pb2.OpenRequest] = field(default_factory=list)
    close: list[int] = field(default_factory=list)
    request: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    kind: list[sampler_pb2.RowKind.ValueType] = field(default_factory=list)
    token: list[int] = field(default_factory=list)
    log_sum_exp: list[float] = field(default_factory=list)
    num_candidates: list[int] = field(default_factory=list)
    ids: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    logits: list[npt.NDArray[np.float32]] = field(default_factory=list)
    num_bytes: int = 0


class OutgoingFrames:
    """Collects what a sampler is to be told; what waits longer goes out together.

    Args:
        max_bytes: Most bytes of candidates in one frame, unless one row alone has more.
    """

    def __init__(self, max_bytes: int = MAX_CANDIDATE_BYTES) -> None:
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
        counts = rows.num_candidates if chosen is None else [rows.num_candidates[index] for index in chosen]
        if sum(counts) * _BYTES_PER_CANDIDATE <= self._max_bytes:
            self._add(rows, chosen, counts)
            return
        for index, count in zip(range(len(rows.numbers)) if chosen is None else chosen, counts, strict=True):
            self._add(rows, [index], [count])

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
            kind=part.kind,
            token=part.token,
            log_sum_exp=part.log_sum_exp,
            num_candidates=part.num_candidates,
            candidate_ids=_joined(part.ids, "<u4"),
            candidate_logits=_joined(part.logits, "<f4"),
        )

    def _last(self, num_bytes: int) -> _Part:
        if not self._parts or (self._parts[-1].num_bytes and self._parts[-1].num_bytes + num_bytes > self._max_bytes):
            self._parts.append(_Part())
        return self._parts[-1]

    def _add(self, rows: Rows, chosen: Sequence[int] | None, counts: list[int]) -> None:
        num_bytes = sum(counts) * _BYTES_PER_CANDIDATE
        part = self._last(num_bytes)
        part.num_bytes += num_bytes
        if chosen is None:
            numbers, positions, tokens, log_sum_exp = rows.numbers, rows.positions, rows.tokens, rows.log_sum_exp
        else:
            numbers = [rows.numbers[index] for index in chosen]
            positions = [rows.positions[index] for index in chosen]
            tokens = [rows.tokens[index] for index in chosen]
            log_sum_exp = [rows.log_sum_exp[index] for index in chosen]
        part.request += numbers
        part.position += positions
        part.kind += [sampler_pb2.ROW_KIND_CANDIDATES if token is None else sampler_pb2.ROW_KIND_DRAWN for token in tokens]
        part.token += [token or 0 for token in tokens]
        part.log_sum_exp += log_sum_exp
        part.num_candidates += counts
        if num_bytes:
            inside = slice(None) if chosen is None else _cells(rows.num_candidates, chosen)
            part.ids.append(rows.candidate_ids[inside])
            part.logits.append(rows.candidate_logits[inside])


def _cells(counts: Sequence[int], chosen: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which candidates belong to the chosen rows."""
    is_chosen = np.zeros(len(counts), dtype=np.bool_)
    is_chosen[list(chosen)] = True
    return np.repeat(is_chosen, counts)


def _joined(arrays: Sequence[npt.NDArray[np.number]], dtype: str) -> bytes:
    return b"".join(array.astype(dtype, copy=False).tobytes() for array in arrays)
