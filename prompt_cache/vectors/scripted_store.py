"""What the back ends in Redis have in common: everything but how an entry is found."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from prompt_cache.vectors import ledger_script
from prompt_cache.vectors.keyspace import Keyspace, ScopeKeys, checked_id
from prompt_cache.vectors.packing import Garbage, pack_observations, pack_vector, unpack_observations
from prompt_cache.vectors.vector_store import Neighbour, Observation, StoreLimits, check_entry

if TYPE_CHECKING:
    from prompt_cache.embedding.embedder import Vector

_MAX_EPOCH = 2**48


async def execute(redis: Redis, *words: Any) -> Any:
    """What Redis replies to a command."""
    return await redis.execute_command(*words)  # type: ignore[no-untyped-call]


class Script:
    """A Lua script that is sent once and named by its hash from then on.

    Args:
        parts: concatenated.
    """

    def __init__(self, *parts: str) -> None:
        self._text = "\n".join(parts).encode()
        self._sha1 = hashlib.sha1(self._text, usedforsecurity=False).hexdigest()

    async def run(self, redis: Redis, keys: ScopeKeys, *arguments: Any) -> Any:
        """What the script returns, in one round trip unless Redis does not know it (any more)."""
        tail = (len(keys.declared), *keys.declared, keys.entries, *arguments)
        try:
            return await execute(redis, "EVALSHA", self._sha1, *tail)
        except NoScriptError:
            return await execute(redis, "EVAL", self._text, *tail)


class Row(NamedTuple):
    """An entry as a script returns it, its observations decoded."""

    entry_id: str
    # What the script says besides about how it was found.
    score: bytes
    data: bytes
    observations: tuple[Observation, ...]
    ttl_s: float


class ScriptedStore(ABC):
    """Entries in hashes, a ledger per scope, and an index of the back end's.

    Args:
        redis: a client that does not decode replies.
        keyspace: the back end's.
        index: the Lua functions that `ledger_script` asks for.
        dimensions: of all vectors.
        limits: of each scope.
    """

    name: str

    def __init__(self, redis: Redis, *, keyspace: Keyspace, index: str, dimensions: int, limits: StoreLimits) -> None:
        self._redis = redis
        self._keys = keyspace
        self._dimensions = dimensions
        self._limits = limits
        self._script = {
            body: Script(index, ledger_script.LEDGER, body)
            for body in (ledger_script.ADD, ledger_script.HIT, ledger_script.OBSERVE, ledger_script.REMOVE, ledger_script.PURGE)
        }
        self._random = random.Random()
        self.corrupt = 0

    @abstractmethod
    async def search(self, scope: str, vector: Vector, k: int) -> list[Neighbour]:
        """See `VectorStore`."""

    async def add(self, scope: str, entry_id: str, vector: Vector, data: bytes, *, ttl_s: float, saved_tokens: int) -> None:
        """See `VectorStore`."""
        check_entry(data, ttl_s, saved_tokens, self._limits)
        live_ms = max(1, round(ttl_s * 1000 * (1 - self._limits.ttl_jitter * self._random.random())))
        limits = (self._limits.max_entries, self._limits.max_bytes, self._limits.policy)
        packed = pack_vector(vector, self._dimensions)
        epoch = self._random.randrange(1, _MAX_EPOCH)
        await self._run(ledger_script.ADD, scope, checked_id(entry_id), packed, data, live_ms, saved_tokens, *limits, epoch)

    async def hit(self, scope: str, entry_id: str) -> None:
        """See `VectorStore`."""
        if self._limits.policy != "fifo":
            await self._run(ledger_script.HIT, scope, checked_id(entry_id), self._limits.policy)

    async def observe(self, scope: str, entry_id: str, observation: Observation) -> None:
        """See `VectorStore`."""
        await self._run(ledger_script.OBSERVE, scope, checked_id(entry_id), pack_observations([observation]))

    async def remove(self, scope: str, entry_ids: Sequence[str]) -> None:
        """See `VectorStore`."""
        if entry_ids:
            await self._run(ledger_script.REMOVE, scope, *map(checked_id, entry_ids))

    async def purge(self, scope: str) -> None:
        """See `VectorStore`."""
        await self._run(ledger_script.PURGE, scope)

    async def count(self, scope: str) -> int:
        """See `VectorStore`."""
        try:
            return int(await execute(self._redis, "ZCARD", self._keys.scope(scope).priorities))
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                return 0
            raise

    async def _run(self, body: str, scope: str, *arguments: Any) -> None:
        reply = await self._script[body].run(self._redis, self._keys.scope(scope), scope, *arguments)
        self.corrupt += reply

    async def _rows(self, scope: str, found: list[Any]) -> list[Row]:
        """What a script found, five values of each entry, decoded. Entries that cannot be decoded are removed."""
        flat = iter(found)
        rows, garbage = [], []
        for entry_id, score, data, observed, left_ms in zip(flat, flat, flat, flat, flat, strict=True):
            try:
                rows.append(Row(entry_id.decode(), score, data, unpack_observations(observed), left_ms / 1000))
            except Garbage:
                garbage.append(entry_id.decode())
        await self._remove_garbage(scope, garbage)
        return rows

    async def _remove_garbage(self, scope: str, entry_ids: list[str]) -> None:
        self.corrupt += len(entry_ids)
        await self.remove(scope, entry_ids)


class SearchedInScript(ScriptedStore):
    """A store whose index a script can ask: a search is one round trip.

    Args:
        index: also defines `index_nearest`.
    """

    def __init__(self, redis: Redis, *, keyspace: Keyspace, index: str, dimensions: int, limits: StoreLimits) -> None:
        super().__init__(redis, keyspace=keyspace, index=index, dimensions=dimensions, limits=limits)
        self._search_script = Script(index, ledger_script.LEDGER, ledger_script.SEARCH)

    async def search(self, scope: str, vector: Vector, k: int) -> list[Neighbour]:
        """See `VectorStore`."""
        packed = pack_vector(vector, self._dimensions)
        reply = await self._search_script.run(self._redis, self._keys.scope(scope), scope, packed, k, self._limits.max_entry_bytes)
        self.corrupt += reply[0]
        rows = await self._rows(scope, reply[1:])
        return [Neighbour(row.entry_id, self._cosine(row.score), row.data, row.observations, row.ttl_s) for row in rows]

    @abstractmethod
    def _cosine(self, score: bytes) -> float:
        """The cosine that the index's score stands for."""
