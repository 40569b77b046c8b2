"""The shared store in Redis: never raises, never waits long, and is left alone while it fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from prompt_cache.circuit_breaker import CircuitBreaker
from prompt_cache.config import CacheConfig
from prompt_cache.keys import CacheKey

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Lookups under way, for each connection. A burst of more would run into the time limit in the pool's queue and look like a failing Redis.
_READS_PER_CONNECTION = 4


class Found(NamedTuple):
    """What Redis holds under a key."""

    # The first bytes of the value, one more than an entry may have; None if the key holds something that is no value.
    data: bytes | None
    # Seconds it has left; None = no end.
    ttl_s: float | None


class _Write(NamedTuple):
    name: str
    # None = delete.
    data: bytes | None


def connect(url: str, config: CacheConfig) -> Redis:
    """A client of a Redis; it connects when it is first used.

    Args:
        url: as redis-py understands it.
        config: timeouts and the number of connections.

    Raises:
        ValueError: the URL is malformed.
    """
    # The library's default is ten tries with a growing pause: seconds for every lookup while Redis is gone.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=config.max_connections,
        timeout=config.lookup_timeout_s,
        socket_timeout=config.socket_timeout_s,
        socket_connect_timeout=config.socket_timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


class RedisStore:
    """Encoded answers in Redis. A failure of any kind is counted and reads as "not there".

    Args:
        redis: from `connect`.
        config: timeouts, bounds and the breaker's limits.
        clock: seconds, never falling.
    """

    def __init__(self, redis: Redis, config: CacheConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._redis = redis
        self._breaker = CircuitBreaker(failures=config.breaker_failures, open_s=config.breaker_open_s)
        self._queue: asyncio.Queue[_Write] = asyncio.Queue(config.write_queue_len)
        self._writer: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[None] | None = None
        self._free_reads = config.max_connections * _READS_PER_CONNECTION
        self.errors = 0
        self.busy = 0
        self.dropped = 0
        self.written = 0

    @property
    def breaker_open(self) -> bool:
        """Whether Redis is being left alone."""
        return not self._breaker.closed

    @property
    def queued(self) -> int:
        """Writes that wait."""
        return self._queue.qsize()

    async def start(self) -> None:
        """Starts the background writer and a first connection, and waits for neither."""
        self._writer = asyncio.create_task(self._write_queued(), name="prompt-cache-writer")
        self._probe = asyncio.create_task(self._ping(), name="prompt-cache-probe")

    async def close(self) -> None:
        """Gives queued writes some time, then lets go of the connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.flush_timeout_s):
                await self.drain()
        tasks = [task for task in (self._writer, self._probe) if task is not None]
        self._writer = self._probe = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(self._config.lookup_timeout_s):
                await self._redis.aclose()
        except Exception as error:  # noqa: BLE001 - a connection that does not close in peace is let go of
            logger.info("a connection to Redis did not close: %r", error)

    async def drain(self) -> None:
        """Returns when nothing is queued and no probe is under way."""
        await self._queue.join()
        if self._probe is not None:
            await asyncio.wait([self._probe])

    async def read(self, key: CacheKey) -> Found | None:
        """What Redis holds under the key; None if nothing, or if it could not be asked in time."""
        if not self._usable():
            return None
        if not self._free_reads:
            self.busy += 1
            return None
        self._free_reads -= 1
        try:
            return await self._attempt(self._read(key))
        finally:
            self._free_reads += 1

    def write(self, key: CacheKey, data: bytes) -> None:
        """Queues a value to be kept for the configured time; drops it if the queue is full or Redis is left alone."""
        self._enqueue(_Write(key.redis_name, data))

    def delete(self, key: CacheKey) -> None:
        """Queues the removal of what the key holds."""
        self._enqueue(_Write(key.redis_name, None))

    def _enqueue(self, write: _Write) -> None:
        if self._writer is None or self._queue.full() or not self._usable():
            self.dropped += 1
        else:
            self._queue.put_nowait(write)

    async def _write_queued(self) -> None:
        while True:
            write = await self._queue.get()
            try:
                if self._usable() and await self._attempt(self._apply(write)):
                    self.written += 1
                else:
                    self.dropped += 1
            finally:
                self._queue.task_done()

    async def _read(self, key: CacheKey) -> Found | None:
        # GETRANGE: a value that somebody else put there may be of any size, and is not fetched whole.
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.getrange(key.redis_name, 0, self._config.max_entry_bytes)
            pipeline.pttl(key.redis_name)
            data, ttl_ms = await pipeline.execute(raise_on_error=False)
        if isinstance(data, ResponseError) and str(data).startswith("WRONGTYPE"):
            return Found(None, None)
        for reply in (data, ttl_ms):
            if isinstance(reply, Exception):
                raise reply
        return Found(data, None if ttl_ms == -1 else ttl_ms / 1000) if data else None

    async def _apply(self, write: _Write) -> bool:
        if write.data is None:
            await self._redis.delete(write.name)
        else:
            await self._redis.set(write.name, write.data, px=round(self._config.ttl_s * 1000))
        return True

    async def _attempt(self, operation: Awaitable[T]) -> T | None:
        """The operation's result; None, counted, if it fails or takes too long."""
        try:
            async with asyncio.timeout(self._config.lookup_timeout_s):
                result = await operation
        except Exception as error:  # noqa: BLE001 - whatever Redis or its client does, it costs a request no more than the hit
            self.errors += 1
            if self._breaker.failed(self._clock()):
                logger.warning("Redis is left alone for %.3g s after failures in a row, the last: %r", self._config.breaker_open_s, error)
            return None
        if self._breaker.succeeded():
            logger.info("Redis is in use again")
        return result

    def _usable(self) -> bool:
        """Whether Redis is in use. If it is not and a probe is due, the probe is sent in the background: no request waits for it."""
        if self._breaker.take_probe(self._clock()):
            self._probe = asyncio.create_task(self._ping(), name="prompt-cache-probe")
        return self._breaker.closed

    async def _ping(self) -> None:
        await self._attempt(self._redis.ping())
