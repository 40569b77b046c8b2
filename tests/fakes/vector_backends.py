"""Back ends of the vector store as tests use them, and vectors whose cosines are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from redis.asyncio import Redis

from prompt_cache.embedding.embedder import Vector
from prompt_cache.vectors.query_engine import QueryEngine
from prompt_cache.vectors.vector_sets import VectorSets
from prompt_cache.vectors.vector_store import StoreLimits, VectorStore

DIMENSIONS = 16

SCOPE = "00ff"
OTHER_SCOPE = "00fe"


@dataclass(frozen=True)
class Backend:
    """How to make a store, and what its keys look like."""

    name: str
    # "plain", "vectors" or "query-engine": the server it needs.
    server: str
    make: Callable[[Redis, StoreLimits], VectorStore]


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("vector-sets", "vectors", lambda redis, limits: VectorSets(redis, dimensions=DIMENSIONS, limits=limits)),
        Backend(
            "query-engine",
            "query-engine",
            lambda redis, limits: QueryEngine(redis, embedder_id="test", dimensions=DIMENSIONS, limits=limits),
        ),
    )
}


def at(cosine: float, axis: int = 1) -> Vector:
    """A unit vector with this cosine to `at(1)`, turned towards an axis."""
    vector = np.zeros(DIMENSIONS, np.float32)
    vector[0], vector[axis] = cosine, np.sqrt(1 - cosine * cosine)
    return vector


def random_vectors(count: int, *, seed: int = 0, dimensions: int = DIMENSIONS) -> list[Vector]:
    """Unit vectors in all directions."""
    rows = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return list(rows / np.linalg.norm(rows, axis=1, keepdims=True))
