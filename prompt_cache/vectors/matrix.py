"""Unit vectors of one scope as rows of a matrix in the process: the nearest are one product away, of many thousands two small ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from prompt_cache.embedding.embedder import Vector
from prompt_cache.vectors.packing import clipped
from prompt_cache.vectors.sketch import BYTES_PER_ROW, NUM_DIRECTIONS, Sketch

# What a row costs besides its numbers: its name, and its places in the list and in the dictionary.
ROW_OVERHEAD_BYTES = 200

_FIRST_CAPACITY = 16
# Up to here all rows are compared: a quarter of a millisecond. Beyond, those that a sketch says may be near, which is faster from here on.
_MOST_COMPARED = 6_000


class Near(NamedTuple):
    """A row near a vector."""

    entry_id: str
    cosine: float


class Matrix:
    """Vectors by name, in the order in which they came; when it is full the oldest goes. Pure: no I/O, no clock.

    Args:
        dimensions: of every vector.
        max_bytes: it may take; it holds at least one row.
        most_compared: rows up to which every one is compared, and the nearest are exact.
    """

    def __init__(self, dimensions: int, max_bytes: int, *, most_compared: int = _MOST_COMPARED) -> None:
        has_sketch = dimensions > NUM_DIRECTIONS
        self.max_rows = max(1, max_bytes // (4 * dimensions + (BYTES_PER_ROW if has_sketch else 0) + ROW_OVERHEAD_BYTES))
        self._most_compared = most_compared if has_sketch else self.max_rows
        self._sketch: Sketch | None = None
        # Rows [0, len(ids)) are in use, in no order.
        self._rows = self._no_rows(dimensions)
        self._ids: list[str] = []
        # Oldest first.
        self._row_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, entry_id: str) -> bool:
        return entry_id in self._row_of

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return self._rows.nbytes + (self._sketch.num_bytes if self._sketch is not None else 0) + ROW_OVERHEAD_BYTES * len(self._ids)

    def put(self, entry_id: str, vector: Vector) -> bool:
        """Keeps a vector, scaled to length 1, in place of the one of that name.

        Returns:
            Whether it has a direction; one that is zero or not finite is not kept.
        """
        self.discard(entry_id)
        wide = vector.astype(np.float64)
        length = float(np.sqrt(wide @ wide))
        if not 0.0 < length < np.inf:
            return False
        if len(self) == self.max_rows:
            self.discard(next(iter(self._row_of)))
        if len(self) == len(self._rows):
            grown = np.empty((min(2 * len(self._rows), self.max_rows), self._rows.shape[1]), np.float32)
            grown[: len(self)] = self._rows
            self._rows, self._sketch = grown, None
        np.divide(vector, length, out=self._rows[len(self)])
        if self._sketch is not None:
            self._sketch.set(len(self), self._rows[len(self)])
        self._row_of[entry_id] = len(self)
        self._ids.append(entry_id)
        if self._sketch is None and len(self) > self._most_compared:
            self._sketch = Sketch(self._rows[: len(self)], len(self._rows))
        return True

    def discard(self, entry_id: str) -> None:
        """Removes a vector, if it is there."""
        row = self._row_of.pop(entry_id, None)
        if row is None:
            return
        last = self._ids.pop()
        if last != entry_id:
            self._rows[row] = self._rows[len(self._ids)]
            if self._sketch is not None:
                self._sketch.move(len(self._ids), row)
            self._ids[row] = last
            self._row_of[last] = row

    def clear(self) -> None:
        """Removes everything, and gives the memory back."""
        self._rows, self._sketch = self._no_rows(self._rows.shape[1]), None
        self._ids.clear()
        self._row_of.clear()

    def nearest(self, vector: Vector, k: int) -> list[Near]:
        """The k nearest, nearest first. Of very many rows one that is not near at all may be missing; see `Sketch`.

        Args:
            vector: [dimensions], not zero.
        """
        if k < 1 or not self._ids:
            return []
        unit = vector / np.sqrt(vector @ vector)
        if self._sketch is not None and len(self) > self._most_compared:
            rows = self._sketch.candidates(unit, len(self))
            found = _best(np.vecdot(self._rows.take(rows, axis=0), unit), k)
            return [self._near(int(rows[place]), cosine) for place, cosine in found]
        # Row by row: the product of matrix and vector would be shared among BLAS's threads, which spin and wait for one another (8 ms in place
        # of 0.2 where the cores are busy); alone it is no faster than this.
        return [self._near(row, cosine) for row, cosine in _best(np.vecdot(self._rows[: len(self)], unit), k)]

    def _near(self, row: int, cosine: float) -> Near:
        return Near(self._ids[row], clipped(cosine))

    def _no_rows(self, dimensions: int) -> npt.NDArray[np.float32]:
        return np.empty((min(_FIRST_CAPACITY, self.max_rows), dimensions), np.float32)


def _best(cosines: npt.NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    """The k largest and where they are, largest first."""
    k = min(k, len(cosines))
    # Selecting is linear, sorting is not.
    best = np.argpartition(-cosines, k - 1)[:k] if k < len(cosines) else np.arange(k)
    best = best[np.argsort(-cosines[best], kind="stable")]
    return list(zip(best.tolist(), cosines[best].tolist(), strict=True))
