"""Observations and vectors as bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prompt_cache.vectors.vector_store import MAX_OBSERVATIONS, Observation

if TYPE_CHECKING:
    from prompt_cache.embedding.embedder import Vector

# The cosine in float32, little-endian, and whether the answers were the same.
_OBSERVATION = struct.Struct("<fB")

OBSERVATION_BYTES = _OBSERVATION.size
MAX_OBSERVATIONS_BYTES = OBSERVATION_BYTES * MAX_OBSERVATIONS

# Rounding may bring a cosine this much over 1.
_COSINE_SLACK = 1e-3


class Garbage(Exception):
    """Bytes that nobody here has packed."""


def pack_observations(observations: Iterable[Observation]) -> bytes:
    """Bytes of observations, one after the other.

    Raises:
        ValueError: a cosine is none.
    """
    return b"".join(_OBSERVATION.pack(checked_cosine(cosine), is_same) for cosine, is_same in observations)


def checked_cosine(cosine: float) -> float:
    """The cosine.

    Raises:
        ValueError: it is not in [-1, 1], give or take what rounding adds.
    """
    if not _is_cosine(cosine):
        raise ValueError(f"cosine is {cosine}, must be in [-1, 1]")
    return cosine


def unpack_observations(data: bytes) -> tuple[Observation, ...]:
    """The observations in the bytes.

    Raises:
        Garbage: they are no whole number of observations, too many, or one is no cosine or no yes or no.
    """
    if len(data) > MAX_OBSERVATIONS_BYTES or len(data) % OBSERVATION_BYTES:
        raise Garbage
    return tuple(_observation(cosine, same) for cosine, same in _OBSERVATION.iter_unpack(data))


def pack_vector(vector: Vector, dimensions: int) -> bytes:
    """Bytes of a vector: float32, little-endian.

    Args:
        vector: [dimensions].

    Raises:
        ValueError: it has another shape, or no direction: it is zero, or not finite.
    """
    if vector.shape != (dimensions,):
        raise ValueError(f"vector has shape {vector.shape}, must be ({dimensions},)")
    wide = vector.astype("f8")
    if not 0.0 < float(wide @ wide) < math.inf:
        raise ValueError("vector is zero or not finite")
    return bytes(vector.astype("<f4").tobytes())


def clipped(cosine: float) -> float:
    """The cosine without what rounding put beyond 1."""
    return max(-1.0, min(1.0, cosine))


def _observation(cosine: float, same: int) -> Observation:
    if not _is_cosine(cosine) or same > 1:
        raise Garbage
    return Observation(cosine, bool(same))


def _is_cosine(value: float) -> bool:
    # NaN is not, by this comparison.
    return abs(value) <= 1 + _COSINE_SLACK
