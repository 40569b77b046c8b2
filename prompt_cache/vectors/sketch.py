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
# Rows whose cosines are computed, or a hundred more. Tried with 100,000 made vectors, clustered, and spread as those of real questions are: the
# nearest, at a cosine of 0.75 or more, was always one of them.
_CANDIDATES = 512
# Groups that rows fall into, of which the nearest row alone is looked at first.
_GROUPS = 1536
# Rows in one product of matrix and vector: few enough for BLAS to take one thread (OpenBLAS: fewer than 9,216 numbers).
_BATCH = 128


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
        """The rows that may be near: at least `_CANDIDATES` where there are so many. Of few rows all.

        Args:
            vector: [dimensions], of length 1.
            num_rows: Rows there are.
        """
        if num_rows < _GROUPS:
            return np.arange(num_rows)
        distances = self._products(-2 * (vector @ self._directions), num_rows)
        distances += self._squares[:num_rows]
        # So many groups have a row that is no farther than this, and it takes a fraction of the time that finding the rows themselves would.
        whole = num_rows // _GROUPS * _GROUPS
        nearest_of_group = distances[:whole].reshape(-1, _GROUPS).min(axis=0)
        return np.flatnonzero(distances <= np.partition(nearest_of_group, _CANDIDATES - 1)[_CANDIDATES - 1])

    def _products(self, projection: Floats, num_rows: int) -> Floats:
        """Of the first rows with a projection, [num_rows]. In batches: a call for each row takes three times as long, and one for all takes threads."""
        products = np.empty(num_rows, np.float32)
        whole = num_rows // _BATCH * _BATCH
        batches = self._projections[:whole].reshape(-1, _BATCH, NUM_DIRECTIONS)
        np.matmul(batches, projection, out=products[:whole].reshape(-1, _BATCH))
        np.vecdot(self._projections[whole:num_rows], projection, out=products[whole:])
        return products


@cache
def _directions(dimensions: int) -> Floats:
    """[dimensions, NUM_DIRECTIONS], orthonormal; the same in every process."""
    random = np.random.default_rng(1984)
    basis, _ = np.linalg.qr(random.standard_normal((dimensions, NUM_DIRECTIONS)))
    return np.ascontiguousarray(basis, dtype=np.float32)
