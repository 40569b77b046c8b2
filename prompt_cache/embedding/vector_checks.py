"""Refuses what is no use as a vector: of another length, not finite, not of unit length, or the same for texts that differ."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from prompt_cache.embedding.embedder import EmbeddingFailed, Vector

NORM_TOLERANCE = 1e-3
# Cosine from which the vectors of two sentences that have nothing to do with each other count as equal.
SAME_COSINE = 0.99


def check_unit_vector(vector: Vector, dimensions: int) -> None:
    """Returns if a vector is one: [dimensions], finite, of unit length.

    Raises:
        EmbeddingFailed: says what is wrong with it.
    """
    if vector.shape != (dimensions,):
        raise EmbeddingFailed(f"a vector has the shape {list(vector.shape)}, expected [{dimensions}]")
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    # Not finite if an element is not.
    if not abs(norm - 1) <= NORM_TOLERANCE:
        raise EmbeddingFailed(f"a vector has the length {norm:.4g}, expected 1")


def check_unrelated(texts: Sequence[str], vectors: Sequence[Vector]) -> None:
    """Returns if the vectors of sentences that have nothing to do with each other differ.

    Args:
        texts: Built in, so that an error may show them.
        vectors: One unit vector each.

    Raises:
        EmbeddingFailed: two are almost equal: the model does not tell texts apart.
    """
    for index, vector in enumerate(vectors):
        for other in range(index):
            cosine = float(vector @ vectors[other])
            if not cosine < SAME_COSINE:
                raise EmbeddingFailed(
                    f"the vectors of {texts[other]!r} and {texts[index]!r} have the cosine {cosine:.4f}: the model does not tell texts apart"
                )


def digest_of(data: bytes) -> bytes:
    """Stands for what a model is given; 16 bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


class SameVectorWatch:
    """Notices a model that gives different inputs the same vector, bit by bit, which no working model does.

    It compares with the probes, within a batch, and with the last vector of the batch before. Not safe for threads.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}
        self._last: dict[bytes, bytes] = {}

    def keep(self, inputs: bytes, vector: Vector) -> None:
        """Compares with this vector from now on.

        Args:
            inputs: Digest of what the model was given.
            vector: What it gave.
        """
        self._known[vector.tobytes()] = inputs

    def check(self, inputs: Sequence[bytes], vectors: Sequence[Vector]) -> None:
        """Returns if inputs that differ have vectors that differ.

        Args:
            inputs: Digests of what the model was given: of what it sees, so that two spellings it does not tell apart are one input.
            vectors: What it gave.

        Raises:
            EmbeddingFailed: two different inputs have the same vector.
        """
        seen = {**self._known, **self._last}
        for digest, vector in zip(inputs, vectors, strict=True):
            if seen.setdefault(vector.tobytes(), digest) != digest:
                raise EmbeddingFailed("two different texts have the same vector")
            self._last = {vector.tobytes(): digest}
