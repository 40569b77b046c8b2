"""The shared store in Redis: never raises, never waits long, and is left alone while it fails."""

from __future__ import annotations

from typing import NamedTuple

from redis.exceptions import ResponseError

from prompt_cache.config import CacheConfig
from prompt_cache.guarded_redis import GuardedRedis
from prompt_cache.keys import CacheKey

# Lookups under way, for each connection. A burst of more would run into the time limit in the pool's queue and look like a failing Redis.
_READS_PER_CONNECTION = 4


class Found(NamedTuple):
    """What Redis holds under a key."""

    # The first bytes of the value, one more than an entry may have; None if the key holds something that is no value.
    data: bytes | None
    # Seconds it has left; None = no end.
    ttl_s: float | None


class RedisStore:
    """Encoded answers in Redis. A failure of any kind is counted and reads as "not there".

    Args:
        guarded: Redis.
        config: bounds and times to live.

    Attributes:
        busy: Lookups that did not ask because too many were under way.
    """

    def __init__(self, guarded: GuardedRedis, config: CacheConfig) -> None:
        self._guarded = guarded
        self._config = config
        self._free_reads = config.max_connections * _READS_PER_CONNECTION
        self.busy = 0

    async def read(self, key: CacheKey) -> Found | None:
        """What Redis holds under the key; None if nothing, or if it could not be asked in time."""
        if not self._guarded.usable():
            return None
        if not self._free_reads:
            self.busy += 1
            return None
        self._free_reads -= 1
        try:
            return await self._guarded.attempt(self._read(key))
        finally:
            self._free_reads += 1

    def write(self, key: CacheKey, data: bytes) -> None:
        """Queues a value to be kept for the configured time; drops it if the queue is full or Redis is left alone."""
        self._guarded.enqueue(lambda: self._guarded.redis.set(key.redis_name, data, px=round(self._config.ttl_s * 1000)))

    def delete(self, key: CacheKey) -> None:
        """Queues the removal of what the key holds."""
        self._guarded.enqueue(lambda: self._guarded.redis.delete(key.redis_name))

    async def _read(self, key: CacheKey) -> Found | None:
        # GETRANGE: a value that somebody else put there may be of any size, and is not fetched whole.
        async with self._guarded.redis.pipeline(transaction=False) as pipeline:
            pipeline.getrange(key.redis_name, 0, self._config.max_entry_bytes)
            pipeline.pttl(key.redis_name)
            data, ttl_ms = await pipeline.execute(raise_on_error=False)
        if isinstance(data, ResponseError) and str(data).startswith("WRONGTYPE"):
            return Found(None, None)
        for reply in (data, ttl_ms):
            if isinstance(reply, Exception):
                raise reply
        return Found(data, None if ttl_ms == -1 else ttl_ms / 1000) if data else None
