"""The ragged candidate columns of a frame, and rectangles cut out of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triserve.rpc.errors import InvalidRequest

# Most cells of one rectangle, unless one row has more: half a megabyte for each of its float64 temporaries, which a cache holds.
_MAX_CELLS = 1 << 16


class Rectangle(NamedTuple):
    """CandidateRows of some rows, side by side.

    Cells beyond a row's candidates have id 0 and logit -inf.
    """

    members: NDArray[np.intp]  # [rows] which of the rows asked for they are
    counts: NDArray[np.int64]  # [rows] candidates of each row
    ids: NDArray[np.uint32]  # [rows, width]
    logits: NDArray[np.float64]  # [rows, width]


class CandidateRows(NamedTuple):
    """CandidateRows of all rows of a frame, one row after the other, in any order within a row."""

    ids: NDArray[np.uint32]  # [candidates]
    logits: NDArray[np.float32]  # [candidates]
    offsets: NDArray[np.int64]  # [rows + 1]

    @classmethod
    def parse(cls, ids: bytes, logits: bytes, counts: Sequence[int], logits_width: int) -> CandidateRows:
        """Reads the columns of a frame without copying them.

        Args:
            ids: little-endian uint32.
            logits: little-endian float32.
            counts: candidates of each row.
            logits_width: every id is below it, and no row has more candidates.

        Raises:
            InvalidRequest: the columns disagree in length, or an id has no logit.
        """
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        total = int(offsets[-1])
        for field, column in (("candidate_ids", ids), ("candidate_logits", logits)):
            if len(column) != 4 * total:
                raise InvalidRequest(f"{field} has {len(column)} bytes, num_candidates says {4 * total}", field=field)
        if counts and max(counts) > logits_width:
            raise InvalidRequest(f"num_candidates has {max(counts)}, the limit is {logits_width}", field="num_candidates")
        parsed = np.frombuffer(ids, "<u4")
        if total and int(parsed.max()) >= logits_width:
            raise InvalidRequest(f"candidate_ids has id {int(parsed.max())}, the limit is {logits_width - 1}", field="candidate_ids")
        return cls(parsed, np.frombuffer(logits, "<f4"), offsets)

    def count(self, row: int) -> int:
        """Number of a row's candidates."""
        return int(self.offsets[row + 1] - self.offsets[row])

    def row(self, row: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        """Views of a row's ids and logits."""
        some = slice(self.offsets[row], self.offsets[row + 1])
        return self.ids[some], self.logits[some]

    def rectangles(self, rows: NDArray[np.int64]) -> Iterator[Rectangle]:
        """Cuts rows of like length into rectangles of bounded size, at most half of each padding.

        Args:
            rows: [rows], each with one candidate or more.
        """
        counts = np.diff(self.offsets)[rows]
        # Rows of 2**(k-1)+1 .. 2**k candidates share a rectangle.
        classes = np.frexp(counts - 1)[1]
        for size_class in np.unique(classes):
            members = np.flatnonzero(classes == size_class)
            per_rectangle = max(1, _MAX_CELLS >> int(size_class))
            for start in range(0, len(members), per_rectangle):
                some = members[start : start + per_rectangle]
                ids, logits = self._cut(rows[some], counts[some])
                yield Rectangle(some, counts[some], ids, logits.astype(np.float64))

    def _cut(self, rows: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
        if len(rows) == 1:  # a whole row of a large vocabulary is not worth an index for each candidate
            ids, logits = self.row(int(rows[0]))
            return ids[None, :], logits[None, :]
        columns = np.arange(int(counts.max()))
        inside = columns < counts[:, None]
        source = np.where(inside, self.offsets[rows][:, None] + columns, 0)
        return np.where(inside, self.ids[source], np.uint32(0)), np.where(inside, self.logits[source], np.float32(-np.inf))
