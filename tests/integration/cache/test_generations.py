"""Generations on a real Redis: a purge is heard everywhere, and nothing that was purged comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import redis

from prompt_cache.config import CacheConfig
from prompt_cache.generations import Generations
from prompt_cache.guarded_redis import GuardedRedis, connect
from tests.fakes.redis_servers import RedisServer
from tests.integration.cache.test_prompt_cache import Clock

NAME = "triserve:cache:generation:aa"
# What another release or another hand may have left there.
RUBBISH = ["x", "-1", "1.5", "1e300", "", "9007199254740993"]


@contextlib.asynccontextmanager
async def gateway(url: str, clock: Clock, **bounds: Any) -> AsyncIterator[Generations]:
    config = CacheConfig(redis_url=url, secret=b"0123456789abcdef", **{"socket_timeout_s": 30, "lookup_timeout_s": 30, **bounds})
    guarded = GuardedRedis(connect(url, config), config, clock)
    generations = Generations(guarded, refresh_s=1.0, clock=clock)
    try:
        yield generations
    finally:
        await generations.close()
        await guarded.close()


async def number_of(generations: Generations) -> int:
    number = await generations.current("aa")
    assert number is not None
    return number


async def test_a_purge_counts_at_once_here_and_soon_elsewhere(server: RedisServer, raw: redis.Redis) -> None:
    clock = Clock()
    async with gateway(server.url, clock) as one, gateway(server.url, clock) as other:
        before = await number_of(one)
        assert await number_of(other) == before
        assert await one.current("bb") == await other.current("bb")
        after = await one.purge("aa")
        assert after is not None
        assert after > before
        assert await number_of(one) == after
        assert await number_of(other) == before, "it was asked a moment ago"
        clock.now += 1
        await number_of(other)
        (reading,) = (known.reading for known in other._known.values() if known.reading)
        assert reading is not None
        await reading
        assert await number_of(other) == after
        await one.purge("aa")
        clock.now += 2
        assert await number_of(other) > after, "after a long pause nobody is given what may be purged"
        assert await one.current("bb") == await other.current("bb")


async def test_a_number_that_redis_lost_or_holds_as_rubbish_is_replaced_by_a_higher_one(server: RedisServer, raw: redis.Redis) -> None:
    clock = Clock()
    async with gateway(server.url, clock) as one:
        await one.purge("aa")
        highest = await number_of(one)
        for value in RUBBISH:
            raw.set(NAME, value)
            async with gateway(server.url, clock) as new:
                number = await number_of(new)
                assert number >= highest
                assert int(raw.get(NAME) or b"") == number
        raw.delete(NAME)
        raw.rpush(NAME, "x")
        async with gateway(server.url, clock) as new:
            assert await number_of(new) >= highest
        assert raw.pttl(NAME) > 365 * 24 * 3600 * 1000


async def test_a_redis_that_is_gone_leaves_what_is_known_and_tells_nothing_new(own_server: RedisServer) -> None:
    clock = Clock()
    async with gateway(own_server.url, clock) as one, gateway(own_server.url, clock) as other:
        known = await number_of(one)
        own_server.kill()
        clock.now += 5
        assert await number_of(one) == known
        assert await other.current("aa") is None
        assert await one.purge("aa") is None
        assert await number_of(one) == known


async def test_a_burst_of_requests_asks_once_and_one_that_leaves_takes_nothing_from_the_others(
    server: RedisServer, raw: redis.Redis
) -> None:
    raw.config_resetstat()
    async with gateway(server.url, Clock()) as one:
        asking = [asyncio.create_task(one.current("aa")) for _ in range(50)]
        await asyncio.sleep(0)
        asking[0].cancel()
        numbers = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(numbers[0], asyncio.CancelledError)
        assert set(numbers[1:]) == {await number_of(one)}
        assert raw.info("commandstats")["cmdstat_eval"]["calls"] == 1


async def test_without_a_redis_numbers_are_the_processs_own() -> None:
    generations = Generations(None, clock=Clock())
    assert await generations.current("aa") == 0
    assert await generations.purge("aa") == 1
    assert (await generations.current("aa"), await generations.current("bb")) == (1, 0)
    await generations.close()
