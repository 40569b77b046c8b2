"""A Redis that costs nobody more than a bounded wait: whatever fails is counted and reads as nothing, and it is left alone while it fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from prompt_cache.circuit_breaker import CircuitBreaker
from prompt_cache.config import CacheConfig
from prompt_cache.redis_tls import TlsConnection, TlsContexts, check_redis_url, is_tls

logger = logging.getLogger(__name__)

T = TypeVar("T")

Job = Callable[[], Awaitable[object]]


def connect(url: str, config: CacheConfig) -> Redis:
    """A client of a Redis; it connects when it is first used.

    Args:
        url: "redis://USER:PASSWORD@HOST:PORT/DB", "rediss://" for TLS, or "unix://PATH".
        config: timeouts and the number of connections.

    Raises:
        ValueError: the URL is malformed, or does not go with the files for TLS.
    """
    check_redis_url(url, config.redis_tls)
    options: dict[str, Any] = dict(parse_url(url))
    if is_tls(url):
        options |= {"connection_class": TlsConnection, "contexts": TlsContexts(config.redis_tls)}
    # The library's default is ten tries with a growing pause: seconds for every lookup while Redis is gone.
    pool = BlockingConnectionPool(
        **options,
        max_connections=config.max_connections,
        timeout=config.lookup_timeout_s,
        socket_timeout=config.socket_timeout_s,
        socket_connect_timeout=config.socket_timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


class GuardedRedis:
    """Attempts on Redis, and work on it in the background.

    Args:
        redis: from `connect`.
        config: timeouts, bounds and the breaker's limits.
        clock: seconds, never falling.

    Attributes:
        redis: the same.
        errors: Attempts that failed or took too long.
        dropped: Jobs in the background that were not done.
        written: Jobs that were.
    """

    def __init__(self, redis: Redis, config: CacheConfig, clock: Callable[[], float]) -> None:
        self.redis = redis
        self.errors = 0
        self.dropped = 0
        self.written = 0
        self._config = config
        self._clock = clock
        self._breaker = CircuitBreaker(failures=config.breaker_failures, open_s=config.breaker_open_s)
        self._queue: asyncio.Queue[Job] = asyncio.Queue(config.write_queue_len)
        self._worker: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[None] | None = None

    @property
    def breaker_open(self) -> bool:
        """Whether Redis is being left alone."""
        return not self._breaker.closed

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return self._queue.qsize()

    async def start(self) -> None:
        """Starts the background worker and a first connection, and waits for neither."""
        self._worker = asyncio.create_task(self._work(), name="prompt-cache-writer")
        self._probe = asyncio.create_task(self._ping(), name="prompt-cache-probe")

    async def close(self) -> None:
        """Gives queued jobs some time, then lets go of the connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.flush_timeout_s):
                await self.drain()
        tasks = [task for task in (self._worker, self._probe) if task is not None]
        self._worker = self._probe = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(self._config.lookup_timeout_s):
                await self.redis.aclose()
        except Exception as error:  # noqa: BLE001 - a connection that does not close in peace is let go of
            logger.info("a connection to Redis did not close: %r", error)

    async def drain(self) -> None:
        """Returns when nothing is queued and no probe is under way."""
        await self._queue.join()
        if self._probe is not None:
            await asyncio.wait([self._probe])

    def enqueue(self, job: Job) -> None:
        """Has a job done in the background; drops it if the queue is full or Redis is left alone."""
        if self._worker is None or self._queue.full() or not self.usable():
            self.dropped += 1
        else:
            self._queue.put_nowait(job)

    async def attempt(self, operation: Awaitable[T]) -> T | None:
        """The operation's result; None, counted, if it fails or takes longer than a lookup may."""
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        try:
            async with asyncio.timeout(self._config.lookup_timeout_s):
                result = await operation
        except Exception as error:  # noqa: BLE001 - whatever Redis or its client does, it costs a request no more than the hit
            self.errors += 1
            if self._breaker.failed(self._clock()):
                # Not its repr, which has no reason.
                last = f"{type(error).__name__}: {error}"
                logger.warning("Redis is left alone for %.3g s after failures in a row, the last: %s", self._config.breaker_open_s, last)
            return None
        finally:
            # The client sends under `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes as the sending is done.
            if task is not None and task.cancelling() > cancelled_before:
                raise asyncio.CancelledError
        if self._breaker.succeeded():
            logger.info("Redis is in use again")
        return result

    def usable(self) -> bool:
        """Whether Redis is in use. If it is not and a probe is due, the probe is sent in the background: no request waits for it."""
        if self._breaker.take_probe(self._clock()):
            self._probe = asyncio.create_task(self._ping(), name="prompt-cache-probe")
        return self._breaker.closed

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            try:
                if self.usable() and await self.attempt(_done(job)):
                    self.written += 1
                else:
                    self.dropped += 1
            finally:
                self._queue.task_done()

    async def _ping(self) -> None:
        await self.attempt(self.redis.ping())


async def _done(job: Job) -> bool:
    await job()
    return True
