"""Finds and keeps answers: first in the process, then in Redis; a failure of either is a miss."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from prompt_cache.config import CacheConfig
from prompt_cache.entry import CachedAnswer, EntryCodec
from prompt_cache.flights import FlightLimits, SharedFlights
from prompt_cache.generations import Generations
from prompt_cache.guarded_redis import GuardedRedis, connect
from prompt_cache.keys import CacheKey, CacheScope, KeyMaker
from prompt_cache.memory_store import MemoryStore
from prompt_cache.redis_store import RedisStore
from prompt_cache.sealing import CorruptEntry, UnknownKey


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Counters since the start, and sizes now."""

    # Lookups by how they ended: found in the process, found in Redis, not found.
    hits_l0: int
    hits_l1: int
    misses: int
    # Operations on Redis that failed or took too long.
    errors: int
    # Lookups that did not ask Redis because too many were under way.
    busy: int
    # Values that were no entry of their key; they are removed.
    corrupt: int
    # Writes that did not reach Redis, and those that did.
    dropped: int
    written: int
    # Answers too long to keep.
    too_large: int
    # Whether Redis is being left alone.
    breaker_open: bool
    # Writes that wait for Redis.
    queued: int
    # The process's own store.
    l0_entries: int
    l0_bytes: int


class PromptCache:
    """Answers of finished requests by exact question.

    Nothing here fails a request: a store that is slow, gone or full of rubbish is a miss.

    Args:
        config: bounds, and where Redis is.
        clock: seconds, never falling.

    Raises:
        ValueError: the Redis URL is malformed.

    Attributes:
        keys: names entries and scopes.
        secrets: as `Sealer` has them.
        guarded: Redis; None = there is none.
    """

    def __init__(self, config: CacheConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self.keys = KeyMaker(config.secrets[-1])
        self.secrets = config.secrets
        self._codec = EntryCodec(config.secrets)
        self._memory = MemoryStore(
            max_bytes=config.l0_max_bytes,
            max_entries=config.l0_max_entries,
            policy=config.l0_eviction,
            namespace_share=config.l0_tenant_share,
        )
        self.guarded = GuardedRedis(connect(config.redis_url, config), config, clock) if config.redis_url is not None else None
        self._redis = RedisStore(self.guarded, config) if self.guarded is not None else None
        self._generations = Generations(self.guarded, clock=clock)
        self._hits_l0 = self._hits_l1 = self._misses = self._corrupt = self._too_large = 0

    async def start(self) -> None:
        """Starts the background writer and a first connection to Redis. Returns at once, whether Redis answers or not."""
        if self.guarded is not None:
            await self.guarded.start()

    async def close(self) -> None:
        """Gives queued writes a second, then lets go of Redis. Takes little more than that, whatever Redis does."""
        await self._generations.close()
        if self.guarded is not None:
            await self.guarded.close()

    async def drain(self) -> None:
        """Returns when every queued write was written or dropped and no probe of Redis is under way."""
        if self.guarded is not None:
            await self.guarded.drain()

    def key(self, scope: CacheScope, prompt_token_ids: Sequence[int]) -> CacheKey:
        """The name of a question's answer.

        Args:
            scope: all that the answer depends on besides the prompt.
            prompt_token_ids: each in [0, 2**32).

        Raises:
            OverflowError: an id is out of range.
        """
        return self.keys.key(scope, prompt_token_ids)

    async def get(self, key: CacheKey, *, ask_redis: bool = True) -> CachedAnswer | None:
        """The answer to a question asked before; None if there is none or it cannot be had in time.

        Args:
            key: name of the answer.
            ask_redis: whether Redis is asked for what is not in the process.
        """
        data = self._memory.get(key, self._clock())
        if data is not None:
            self._hits_l0 += 1
            return self._codec.decode(key, data)
        answer = await self._from_redis(key) if ask_redis else None
        if answer is None:
            self._misses += 1
        else:
            self._hits_l1 += 1
        return answer

    def put(self, key: CacheKey, answer: CachedAnswer) -> None:
        """Keeps an answer. Returns at once: Redis is written to in the background, or not if it cannot keep up.

        Raises:
            ValueError: the answer breaks its own types.
        """
        data = self._codec.encode(key, answer)
        if len(data) > self._config.max_entry_bytes:
            self._too_large += 1
            return
        saved = answer.prompt_tokens + answer.completion_tokens
        self._memory.put(key, data, now=self._clock(), ttl_s=min(self._config.l0_ttl_s, self._config.ttl_s), saved_tokens=saved)
        if self._redis is not None:
            self._redis.write(key, data)

    def share_flights(self) -> SharedFlights | None:
        """What lets identical questions at all gateways of the Redis be answered once, to be started and closed by the caller; None without one."""
        if self.guarded is None or self._config.redis_url is None:
            return None
        reader = connect(self._config.redis_url, replace(self._config, max_connections=1))
        return SharedFlights(self.guarded, reader, self._config, FlightLimits(), self._clock)

    @property
    def errors(self) -> int:
        """Operations on Redis that failed or took too long: who sees the number rise while it waits asks no more of Redis."""
        return self.guarded.errors if self.guarded is not None else 0

    async def generation(self, tenant: str) -> int:
        """Of the tenant's entries; 0 while Redis has not told it. Redis counts on from the time of day, so what is kept by then is not found later."""
        return await self._generations.current(self.keys.namespace(tenant)) or 0

    async def purge(self, tenant: str) -> int | None:
        """Forgets all that a tenant has, in every gateway of the Redis. The new generation; None = Redis could not be told, and nothing is forgotten."""
        return await self._generations.purge(self.keys.namespace(tenant))

    @property
    def stats(self) -> CacheStats:
        """Counters since the start, and sizes now."""
        guarded = self.guarded
        return CacheStats(
            hits_l0=self._hits_l0,
            hits_l1=self._hits_l1,
            misses=self._misses,
            errors=guarded.errors if guarded else 0,
            busy=self._redis.busy if self._redis else 0,
            corrupt=self._corrupt,
            dropped=guarded.dropped if guarded else 0,
            written=guarded.written if guarded else 0,
            too_large=self._too_large,
            breaker_open=guarded.breaker_open if guarded else False,
            queued=guarded.queued if guarded else 0,
            l0_entries=len(self._memory),
            l0_bytes=self._memory.num_bytes,
        )

    async def _from_redis(self, key: CacheKey) -> CachedAnswer | None:
        found = await self._redis.read(key) if self._redis is not None else None
        if self._redis is None or found is None:
            return None
        try:
            if found.data is None or len(found.data) > self._config.max_entry_bytes:
                raise CorruptEntry
            answer = self._codec.decode(key, found.data)
        except UnknownKey:
            # Of a gateway that has the next secret already, or that is still to get it.
            return None
        except CorruptEntry:
            self._corrupt += 1
            self._redis.delete(key)
            return None
        left_s = self._config.l0_ttl_s if found.ttl_s is None else min(self._config.l0_ttl_s, found.ttl_s)
        saved = answer.prompt_tokens + answer.completion_tokens
        self._memory.put(key, found.data, now=self._clock(), ttl_s=left_s, saved_tokens=saved)
        return answer
