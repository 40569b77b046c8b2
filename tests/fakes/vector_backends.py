"""Back ends of the vector store as tests use them, and vectors whose cosines are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import redis
from redis.asyncio import Redis

from prompt_cache.embedding.embedder import Vector
from prompt_cache.vectors.flat import FlatStore
from prompt_cache.vectors.keyspace import PREFIX
from prompt_cache.vectors.local import LocalStore
from prompt_cache.vectors.query_engine import QueryEngine
from prompt_cache.vectors.vector_sets import VectorSets
from prompt_cache.vectors.vector_store import StoreLimits, VectorStore

DIMENSIONS = 16

SCOPE = "00ff"
OTHER_SCOPE = "00fe"

NO_JITTER = StoreLimits(ttl_jitter=0)


@dataclass(frozen=True)
class Backend:
    """How to make a store, and what its keys look like."""

    name: str
    # "plain", "vectors" or "query-engine": the server it needs, if any.
    server: str | None
    make: Callable[[Redis, StoreLimits], VectorStore]


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("vector-sets", "vectors", lambda redis, limits: VectorSets(redis, dimensions=DIMENSIONS, limits=limits)),
        Backend("local", None, lambda _, limits: LocalStore(dimensions=DIMENSIONS, limits=limits)),
        Backend("flat", "plain", lambda redis, limits: FlatStore(redis, dimensions=DIMENSIONS, limits=limits)),
        Backend(
            "query-engine",
            "query-engine",
            lambda redis, limits: QueryEngine(redis, embedder_id="test", dimensions=DIMENSIONS, limits=limits),
        ),
    )
}
# As it searches scopes of many entries.
BACKENDS["query-engine, by its graph"] = Backend(
    "query-engine",
    "query-engine",
    lambda redis, limits: QueryEngine(redis, embedder_id="test", dimensions=DIMENSIONS, limits=limits, most_compared=0),
)


def at(cosine: float, axis: int = 1) -> Vector:
    """A unit vector with this cosine to `at(1)`, turned towards an axis."""
    vector = np.zeros(DIMENSIONS, np.float32)
    vector[0], vector[axis] = cosine, np.sqrt(1 - cosine * cosine)
    return vector


def random_vectors(count: int, *, seed: int = 0, dimensions: int = DIMENSIONS) -> list[Vector]:
    """Unit vectors in all directions."""
    rows = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return list(rows / np.linalg.norm(rows, axis=1, keepdims=True))


async def keep(
    store: VectorStore,
    name: str,
    vector: Vector | None = None,
    *,
    scope: str = SCOPE,
    data: bytes = b"",
    ttl_s: float = 3600,
    saved_tokens: int = 1,
) -> None:
    """Adds an entry whose data say what it is."""
    await store.add(scope, name, at(1) if vector is None else vector, data or name.encode(), ttl_s=ttl_s, saved_tokens=saved_tokens)


async def found(store: VectorStore, k: int = 10, *, scope: str = SCOPE) -> list[str]:
    """Names of what is near `at(1)`, nearest first."""
    return [near.entry_id for near in await store.search(scope, at(1), k)]


def entry_key(raw: redis.Redis, name: str) -> bytes:
    """The key of an entry."""
    return _only_key(raw, f"{PREFIX}*:e:*:{name}")


def key_of(raw: redis.Redis, suffix: str) -> bytes:
    """A key of the scope's records."""
    return _only_key(raw, f"{PREFIX}*}}:{suffix}")


def _only_key(raw: redis.Redis, pattern: str) -> bytes:
    [key] = raw.keys(pattern)
    assert isinstance(key, bytes)
    return key
