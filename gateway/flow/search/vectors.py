"""Hidden states of the tokens of one sequence, and how alike others are to them. Imported when the first such search begins, as it takes numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triserve.rpc.errors import Internal

# Of a vector of nothing but zeros there is no direction.
_LEAST_LENGTH = 1e-12


class Vectors:
    """Directions of vectors; memory for all of them is taken at once.

    Args:
        most: as many as there will be.
        width: numbers in each.
    """

    def __init__(self, most: int, width: int) -> None:
        self._rows = np.empty((most, width), np.float32)
        self._num = 0

    def add(self, vectors: bytes, *, num: int) -> None:
        """Takes in the vectors of the next tokens.

        Args:
            vectors: little-endian float32.
            num: as many as there must be.

        Raises:
            Internal: there are not so many.
        """
        self._set_directions(self._rows[self._num : self._num + num], vectors)
        self._num += num

    def likeness(self, vectors: Sequence[bytes]) -> list[float]:
        """The highest cosine between each of some vectors and those that were added.

        Raises:
            Internal: one is none.
        """
        given = np.empty((len(vectors), self._rows.shape[1]), np.float32)
        self._set_directions(given, b"".join(vectors))
        highest: list[float] = (given @ self._rows[: self._num].T).max(axis=1).tolist()
        return highest

    def _set_directions(self, rows: NDArray[np.float32], vectors: bytes) -> None:
        if len(vectors) != rows.nbytes:
            raise Internal(f"{len(vectors)} bytes of hidden states came for {len(rows)} tokens of {rows.shape[1]} numbers")
        exact = np.frombuffer(vectors, "<f4").reshape(rows.shape)
        lengths = np.sqrt(np.einsum("ij,ij->i", exact, exact, dtype=np.float64))
        np.divide(exact, np.maximum(lengths, _LEAST_LENGTH).astype(np.float32)[:, None], out=rows)
