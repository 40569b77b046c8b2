"""Entries and vectors in the process alone, for a machine without a Redis."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prompt_cache.embedding.embedder import Vector
from prompt_cache.vectors.keyspace import checked_id, checked_scope
from prompt_cache.vectors.matrix import Matrix
from prompt_cache.vectors.packing import checked_cosine, pack_vector
from prompt_cache.vectors.resident_scopes import ResidentScopes
from prompt_cache.vectors.vector_store import MAX_OBSERVATIONS, Neighbour, Observation, StoreLimits, check_entry

# What an entry costs besides its data and its row.
_ENTRY_OVERHEAD_BYTES = 500


@dataclass
class _Entry:
    data: bytes
    ends_at: float
    saved_tokens: int
    priority: float
    hits: int = 1
    observations: deque[Observation] = field(default_factory=lambda: deque(maxlen=MAX_OBSERVATIONS))


class _Scope:
    """The entries of one scope: as the ledger in Redis, with the same policies.

    It evicts exactly what the ledger does. Of equal priorities that is the lowest id, where `eviction.Order`, the process's own store's, takes the one
    used longest ago: hence an order of its own.
    """

    def __init__(self, matrix: Matrix, limits: StoreLimits) -> None:
        self.matrix = matrix
        self.entries: dict[str, _Entry] = {}
        self.data_bytes = 0
        self._limits = limits
        self._turn = itertools.count(1)
        # What an eviction cost: priorities start from here, so that what was worth much long ago does not stay for ever.
        self._inflation = 0.0
        # (priority, id), lowest first; pairs whose priority is no longer the entry's are passed over.
        self._order: list[tuple[float, str]] = []

    @property
    def num_bytes(self) -> int:
        return self.matrix.num_bytes + self.data_bytes + _ENTRY_OVERHEAD_BYTES * len(self.entries)

    def live(self, entry_id: str, now: float) -> _Entry | None:
        """An entry, if it is there; one that has ended is removed."""
        entry = self.entries.get(entry_id)
        if entry is not None and entry.ends_at <= now:
            self.discard(entry_id)
            return None
        return entry

    def put(self, entry_id: str, vector: Vector, entry: _Entry) -> None:
        self.discard(entry_id)
        max_entries = min(self._limits.max_entries, self.matrix.max_rows)
        while len(self.entries) >= max_entries or self.data_bytes + len(entry.data) > self._limits.max_bytes:
            self._evict()
        self.entries[entry_id] = entry
        self.data_bytes += len(entry.data)
        self.matrix.put(entry_id, vector)
        self.rank(entry_id, entry)

    def rank(self, entry_id: str, entry: _Entry) -> None:
        """Sets an entry's priority, and keeps the heap about as long as there are entries."""
        policy = self._limits.policy
        worth = entry.hits * entry.saved_tokens / len(entry.data) if policy == "cost" else entry.hits
        entry.priority = next(self._turn) if policy in ("lru", "fifo") else self._inflation + worth
        heapq.heappush(self._order, (entry.priority, entry_id))
        if len(self._order) > 64 + 2 * len(self.entries):
            self._order = [(each.priority, name) for name, each in self.entries.items()]
            heapq.heapify(self._order)

    def discard(self, entry_id: str) -> None:
        entry = self.entries.pop(entry_id, None)
        if entry is not None:
            self.data_bytes -= len(entry.data)
            self.matrix.discard(entry_id)

    def _evict(self) -> None:
        priority, entry_id = heapq.heappop(self._order)
        entry = self.entries.get(entry_id)
        if entry is not None and entry.priority == priority:
            self._inflation = max(self._inflation, priority)
            self.discard(entry_id)


class LocalStore:
    """Entries of one process.

    Args:
        dimensions: of all vectors.
        limits: of each scope.
        max_resident_bytes: of all scopes together; the scope that was used longest ago goes.
        clock: seconds, never falling.
    """

    name = "local"
    # Nobody else writes here.
    corrupt = 0

    def __init__(
        self,
        *,
        dimensions: int,
        limits: StoreLimits,
        max_resident_bytes: int = 256 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dimensions = dimensions
        self._limits = limits
        self._max_resident_bytes = max_resident_bytes
        self._clock = clock
        self._random = random.Random()
        self._scopes: ResidentScopes[_Scope] = ResidentScopes(max_resident_bytes)

    @property
    def resident_bytes(self) -> int:
        """What all scopes take."""
        return self._scopes.num_bytes

    async def search(self, scope: str, vector: Vector, k: int) -> list[Neighbour]:
        """See `VectorStore`."""
        pack_vector(vector, self._dimensions)
        kept, now = self._scopes.use(checked_scope(scope)), self._clock()
        if kept is None:
            return []
        while True:
            found = [(row, kept.live(row.entry_id, now)) for row in kept.matrix.nearest(vector, k)]
            hits = [Neighbour(*row, entry.data, tuple(entry.observations), entry.ends_at - now) for row, entry in found if entry]
            # Those that had ended are gone now, and others are among the nearest.
            if len(hits) == len(found):
                return hits

    async def add(self, scope: str, entry_id: str, vector: Vector, data: bytes, *, ttl_s: float, saved_tokens: int) -> None:
        """See `VectorStore`."""
        check_entry(data, ttl_s, saved_tokens, self._limits)
        pack_vector(vector, self._dimensions)
        kept = self._scopes.use(checked_scope(scope)) or _Scope(Matrix(self._dimensions, self._max_resident_bytes), self._limits)
        live_s = ttl_s * (1 - self._limits.ttl_jitter * self._random.random())
        kept.put(checked_id(entry_id), vector, _Entry(data, self._clock() + live_s, saved_tokens, 0.0))
        self._scopes.keep(scope, kept, kept.num_bytes)

    async def hit(self, scope: str, entry_id: str) -> None:
        """See `VectorStore`."""
        kept = self._scopes.use(checked_scope(scope))
        entry = kept.live(checked_id(entry_id), self._clock()) if kept is not None else None
        if kept is not None and entry is not None and self._limits.policy != "fifo":
            entry.hits += 1
            kept.rank(entry_id, entry)

    async def observe(self, scope: str, entry_id: str, observation: Observation) -> None:
        """See `VectorStore`."""
        kept = self._scopes.use(checked_scope(scope))
        entry = kept.live(checked_id(entry_id), self._clock()) if kept is not None else None
        checked_cosine(observation.cosine)
        if entry is not None:
            entry.observations.append(observation)

    async def remove(self, scope: str, entry_ids: Sequence[str]) -> None:
        """See `VectorStore`."""
        kept = self._scopes.use(checked_scope(scope))
        for entry_id in map(checked_id, entry_ids):
            if kept is not None:
                kept.discard(entry_id)
        if kept is not None:
            self._scopes.keep(scope, kept, kept.num_bytes)

    async def purge(self, scope: str) -> None:
        """See `VectorStore`."""
        self._scopes.drop(checked_scope(scope))

    async def count(self, scope: str) -> int:
        """See `VectorStore`."""
        kept = self._scopes.use(checked_scope(scope))
        return len(kept.entries) if kept is not None else 0
