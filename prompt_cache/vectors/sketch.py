"""A short stand-in for each of many unit vectors: which rows may be near is told from a tenth of the memory.

Vectors are projected to a few fixed random directions (Johnson-Lindenstrauss): distances survive to a quarter or so. What is asked for is near, at a
distance that is a fraction of what lies between two vectors by chance, and so is among the nearest hundreds of the projections. Distances and not
cosines are compared: the length that a vector has left says as much of it as its direction.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from prompt_cache.embedding.embedder import Vector

Floats = npt.NDArray[np.float32]

# Of 384 and more; fewer than these are not worth a sketch.
NUM_DIRECTIONS = 32
# Beside the projection, its squared length.
BYTES_PER_ROW = 4 * (NUM_DIRECTIONS + 1)
# Rows whose cosines are computed, or a few more. Among 100,000 made vectors the nearest is always one of them, and 99 % of the four nearest.
_CANDIDATES = 512
_BLOCK = 64


class Sketch:
    """Of the rows of a matrix.

    Args:
        rows: [n, dimensions], unit vectors.
        capacity: Rows there may be before it must be made anew.
    """

    def __init__(self, rows: Floats, capacity: int) -> None:
        self._directions = _directions(rows.shape[1])
        self._projections = np.empty((capacity, NUM_DIRECTIONS), np.float32)
        self._squares = np.empty(capacity, np.float32)
        np.matmul(rows, self._directions, out=self._projections[: len(rows)])
        self._squares[: len(rows)] = np.vecdot(self._projections[: len(rows)], self._projections[: len(rows)])

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return self._projections.nbytes + self._squares.nbytes

    def set(self, row: int, vector: Vector) -> None:
        """A row is this unit vector from now on."""
        self._projections[row] = vector @ self._directions
        self._squares[row] = self._projections[row] @ self._projections[row]

    def move(self, source: int, target: int) -> None:
        """A row takes the place of another."""
        self._projections[target] = self._projections[source]
        self._squares[target] = self._squares[source]

    def candidates(self, vector: Vector, num_rows: int) -> npt.NDArray[np.intp]:
        """The rows that may be near: at least `_CANDIDATES` where there are so many.

        Args:
            vector: [dimensions], of length 1.
            num_rows: Rows there are.
        """
        # Row by row, as in `Matrix.nearest`.
        distances = np.vecdot(self._projections[:num_rows], vector @ self._directions)
        distances *= -2
        distances += self._squares[:num_rows]
        if num_rows <= _CANDIDATES * _BLOCK:
            return np.argpartition(distances, min(_CANDIDATES, num_rows) - 1)[:_CANDIDATES]
        # So many blocks have a row that is no farther than this, and it takes a fraction of the time that finding the rows themselves would.
        whole = num_rows // _BLOCK * _BLOCK
        best_of_block = distances[:whole].reshape(-1, _BLOCK).min(axis=1)
        return np.flatnonzero(distances <= np.partition(best_of_block, _CANDIDATES - 1)[_CANDIDATES - 1])


@cache
def _directions(dimensions: int) -> Floats:
    """[dimensions, NUM_DIRECTIONS], orthonormal; the same in every process."""
    random = np.random.default_rng(1984)
    basis, _ = np.linalg.qr(random.standard_normal((dimensions, NUM_DIRECTIONS)))
    return np.ascontiguousarray(basis, dtype=np.float32)
