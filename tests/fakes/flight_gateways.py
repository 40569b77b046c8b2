"""Gateways' parts in flights on a real Redis, and what tests of them say again and again."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
import redis

from prompt_cache.config import CacheConfig
from prompt_cache.entry import CachedDelta
from prompt_cache.flights import Finished, FlightLimits, Follow, Lead, LeaderLost, SharedFlights
from prompt_cache.flights.scripts import FlightNames
from prompt_cache.guarded_redis import GuardedRedis, connect
from prompt_cache.keys import CacheKey
from tests.fakes.gateway_fleet import eventually

SECRET = b"0123456789abcdef"
KEY = CacheKey("aa", "11" * 32)
NAMES = FlightNames.of(KEY)
END = Finished("stop", 7)
# Leases that end only when a test ends them.
LIMITS = FlightLimits(lease_s=3600, publish_every_s=0.001, publish_unwatched_every_s=0.001)
# And followers who look so often that nobody waits for it.
WATCHFUL = dataclasses.replace(LIMITS, look_every_s=0.005)


@contextlib.asynccontextmanager
async def gateway(
    url: str, limits: FlightLimits = LIMITS, *, secret: bytes = SECRET, clock: Callable[[], float] = time.monotonic, **bounds: Any
) -> AsyncIterator[SharedFlights]:
    """One gateway's part. Redis has long to answer unless said otherwise: a busy test machine is no failing Redis."""
    patient: dict[str, Any] = {"socket_timeout_s": 30, "lookup_timeout_s": 30, "max_connections": 32, **bounds}
    config = CacheConfig(redis_url=url, secret=secret, **patient)
    guarded = GuardedRedis(connect(url, config), config, clock)
    shared = SharedFlights(guarded, connect(url, dataclasses.replace(config, max_connections=1)), config, limits, clock)
    await guarded.start()
    await guarded.drain()
    await shared.start()
    try:
        yield shared
    finally:
        await shared.close()
        await guarded.close()


def delta(number: int) -> CachedDelta:
    return CachedDelta(f"piece {number} ", (number,))


def deltas(count: int, first: int = 0) -> list[CachedDelta]:
    return [delta(number) for number in range(first, first + count)]


async def lead_of(shared: SharedFlights, key: CacheKey = KEY) -> Lead:
    seat = await shared.board(key)
    assert isinstance(seat, Lead)
    return seat


async def follow_of(shared: SharedFlights, key: CacheKey = KEY) -> Follow:
    seat = await shared.board(key)
    assert isinstance(seat, Follow)
    return seat


async def read_all(follow: Follow, got: list[CachedDelta] | None = None) -> tuple[list[CachedDelta], object]:
    """Everything up to the end, and the end; LeaderLost comes after what was delivered, which is in `got`."""
    got = [] if got is None else got
    state: object = None
    while state is None:
        batch = await follow.read(len(got))
        got += batch.deltas
        state = batch.state
    return got, state


async def lost(follow: Follow) -> str:
    with pytest.raises(LeaderLost) as caught:
        await read_all(follow)
    return caught.value.reason


def entries_of(raw: redis.Redis, stream: str) -> list[dict[Any, Any]]:
    return [fields for _, fields in cast(Any, raw.xrange(stream))]


async def published(raw: redis.Redis, count: int = 1) -> None:
    await eventually(lambda: raw.xlen(NAMES.stream) >= count)
