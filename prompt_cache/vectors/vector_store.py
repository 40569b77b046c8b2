"""What every store of vectors is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from prompt_cache.embedding.embedder import Vector

EvictionPolicy = Literal["lru", "lfu", "fifo", "cost"]


class Observation(NamedTuple):
    """What a comparison with the model's own answer showed.

    Attributes:
        cosine: Between the question asked and that of the entry.
        is_same: Whether the entry's answer was as good as the model's.
    """

    cosine: float
    is_same: bool


class Neighbour(NamedTuple):
    """An entry near a vector.

    Attributes:
        entry_id: Its name in its scope.
        cosine: Between its vector and the one asked for, in [-1, 1].
        data: The entry, sealed.
        observations: Of this entry, oldest first, the last 64.
        ttl_s: Seconds it has left.
    """

    entry_id: str
    cosine: float
    data: bytes
    observations: tuple[Observation, ...]
    ttl_s: float


@dataclass(frozen=True, kw_only=True)
class StoreLimits:
    """Bounds of a scope.

    Attributes:
        max_entries: Of one scope; one more evicts by the policy.
        max_bytes: Of sealed entries of one scope.
        policy: Who goes first: least recently hit, least often hit, oldest, or least tokens saved per byte (greedy-dual size frequency).
        ttl_jitter: Share of the time to live by which it is shortened at random, so that what was written together does not end together.
    """

    max_entries: int = 10_000
    max_bytes: int = 64 * 1024 * 1024
    policy: EvictionPolicy = "lru"
    ttl_jitter: float = 0.1


class VectorStore(Protocol):
    """Entries by vector, apart by scope.

    Everything may raise what redis-py raises, and TimeoutError. A scope is lower-case hex; all keys of a scope share a hash tag.
    """

    @property
    def name(self) -> str:
        """Of the back end: "query-engine", "vector-sets" or "flat"."""

    async def search(self, scope: str, vector: Vector, k: int) -> list[Neighbour]:
        """The nearest entries of the scope, nearest first; expired and evicted ones are not among them."""

    async def add(self, scope: str, entry_id: str, vector: Vector, data: bytes, *, ttl_s: float, saved_tokens: int) -> None:
        """Keeps an entry, in place of the one of that name.

        Args:
            saved_tokens: What a hit saves, for the cost-aware policy.

        Effects: evicts entries of the scope beyond its limits.
        """

    async def hit(self, scope: str, entry_id: str) -> None:
        """Notes that an entry was served, for eviction."""

    async def observe(self, scope: str, entry_id: str, observation: Observation) -> None:
        """Adds an observation to an entry, if it still exists."""

    async def remove(self, scope: str, entry_ids: Sequence[str]) -> None:
        """Removes entries."""

    async def purge(self, scope: str) -> None:
        """Removes the scope and everything in it."""

    async def count(self, scope: str) -> int:
        """Number of entries, of which some may have expired."""
