"""The cache on a real Redis: shared answers, and a Redis that hangs, dies, lies and comes back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from prompt_cache import CacheConfig, CachedAnswer, CachedDelta, CacheKey, CacheScope, PromptCache
from tests.fakes.redis_servers import RedisServer

SECRET = b"0123456789abcdef"
SCOPE = CacheScope(tenant="a", model="m", weights_revision="w", computation="c", tokenizer_sha256="t", sampling=b"")
OPEN_S = 1.0


class Clock:
    """Time that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(
    url: str, *, clock: Clock | None = None, secret: bytes = SECRET, old_secrets: tuple[bytes, ...] = (), **bounds: float
) -> AsyncIterator[PromptCache]:
    """A started cache. Limits are long unless given: a busy test machine is no failing Redis."""
    limits: dict[str, float] = {"socket_timeout_s": 30, "lookup_timeout_s": 30, "breaker_open_s": OPEN_S, **bounds}
    cache = PromptCache(CacheConfig(redis_url=url, secret=secret, old_secrets=old_secrets, **limits), clock=clock or Clock())  # type: ignore[arg-type]
    await cache.start()
    await cache.drain()
    try:
        yield cache
    finally:
        await cache.close()


def answer(number: int = 0) -> CachedAnswer:
    return CachedAnswer(deltas=(CachedDelta(f"answer {number}", (number,)),), finish_reason="stop", prompt_tokens=1, created_at=0)


async def keep(cache: PromptCache, number: int = 0) -> CacheKey:
    """Puts an answer and waits until it was written or dropped."""
    key = cache.key(SCOPE, [number])
    cache.put(key, answer(number))
    await cache.drain()
    return key


async def recovered(cache: PromptCache, clock: Clock, key: CacheKey) -> None:
    """Lets the open time pass, and waits for the probe that the next lookup sends."""
    clock.now += OPEN_S
    assert await cache.get(key) is None
    await cache.drain()


async def test_an_answer_kept_by_one_process_is_found_by_another(server: RedisServer) -> None:
    async with opened(server.url) as one, opened(server.url) as other:
        key = await keep(one)
        assert await other.get(key) == answer()
        assert await other.get(key) == answer()
        assert (other.stats.hits_l1, other.stats.hits_l0, other.stats.misses) == (1, 1, 0)
        assert (one.stats.written, one.stats.dropped) == (1, 0)


async def test_while_secrets_are_changed_gateways_of_both_kinds_find_what_they_can_open_and_spoil_nothing(server: RedisServer) -> None:
    new = b"a secret of later"
    async with opened(server.url) as before, opened(server.url, secret=new, old_secrets=(SECRET,)) as both:
        old_key = await keep(before, 1)
        assert await both.get(old_key) == answer(1), "what was kept before is found"
        new_key = await keep(both, 2)
        assert await before.get(new_key) is None, "it lacks the secret"
        assert (before.stats.corrupt, before.stats.errors) == (0, 0)
    async with opened(server.url, secret=new, old_secrets=(SECRET,)) as again:
        assert await again.get(new_key) == answer(2), "who could not open it has not removed it"
    async with opened(server.url, secret=new) as after:
        assert await after.get(after.key(SCOPE, [2])) is None, "without the old secret names are new"


async def test_a_purge_is_of_one_tenant_and_reaches_the_others(server: RedisServer) -> None:
    async with opened(server.url) as one, opened(server.url) as other:
        assert await one.generation("a") == await other.generation("a") and await one.generation("b") == await other.generation("b")
        before = await other.generation("b")
        purged = await one.purge("a")
        assert purged is not None and purged > await other.generation("a") and await other.generation("b") == before
    async with opened(server.url) as later:
        assert await later.generation("a") == purged


async def test_what_redis_holds_expires(server: RedisServer, raw: redis.Redis) -> None:
    async with opened(server.url, ttl_s=1000) as cache:
        key = await keep(cache)
        assert 0 < raw.ttl(key.redis_name) <= 1000


async def test_a_hit_in_redis_stays_in_process_no_longer_than_it_had_left(server: RedisServer, raw: redis.Redis) -> None:
    clock = Clock()
    async with opened(server.url) as one, opened(server.url, clock=clock, l0_ttl_s=1e6) as other:
        key = await keep(one)
        raw.pexpire(key.redis_name, 500_000)
        assert await other.get(key) == answer()
        raw.delete(key.redis_name)
        clock.now = 400
        assert await other.get(key) == answer()
        clock.now = 500
        assert await other.get(key) is None


async def test_an_entry_that_lost_its_expiry_is_served(server: RedisServer, raw: redis.Redis) -> None:
    async with opened(server.url) as one, opened(server.url) as other:
        key = await keep(one)
        raw.persist(key.redis_name)
        assert await other.get(key) == answer()


@pytest.mark.parametrize("rubbish", [b"x", bytes(2_000_000), os.urandom(1000)], ids=["short", "2 MB", "random"])
async def test_rubbish_in_redis_is_a_miss_and_is_removed(server: RedisServer, raw: redis.Redis, rubbish: bytes) -> None:
    async with opened(server.url) as cache:
        key = cache.key(SCOPE, [1])
        raw.set(key.redis_name, rubbish)
        assert await cache.get(key) is None
        await cache.drain()
        assert not raw.exists(key.redis_name)
        assert (cache.stats.corrupt, cache.stats.errors, cache.stats.breaker_open) == (1, 0, False)


async def test_a_value_of_another_type_is_a_miss_and_is_removed(server: RedisServer, raw: redis.Redis) -> None:
    async with opened(server.url) as cache:
        key = cache.key(SCOPE, [1])
        raw.rpush(key.redis_name, "a")
        assert await cache.get(key) is None
        await cache.drain()
        assert not raw.exists(key.redis_name)
        assert (cache.stats.corrupt, cache.stats.errors) == (1, 0)


async def test_an_entry_copied_to_another_key_is_a_miss(server: RedisServer, raw: redis.Redis) -> None:
    async with opened(server.url) as cache:
        key, other = await keep(cache, 1), cache.key(SCOPE, [2])
        raw.copy(key.redis_name, other.redis_name)
        assert await cache.get(other) is None
        assert cache.stats.corrupt == 1


async def test_a_hanging_redis_costs_the_hit_and_comes_back(server: RedisServer) -> None:
    clock = Clock()
    async with opened(server.url, clock=clock, l0_max_entries=0, socket_timeout_s=1.5, lookup_timeout_s=1.5, breaker_failures=1) as cache:
        key = await keep(cache)
        server.pause()
        try:
            assert await cache.get(key) is None
            assert cache.stats.breaker_open
            cache.put(key, answer())
            assert (cache.stats.errors, cache.stats.dropped) == (1, 1)
        finally:
            server.resume()
        await recovered(cache, clock, key)
        assert await cache.get(key) == answer()
        assert not cache.stats.breaker_open


async def test_many_lookups_on_a_hanging_redis_leave_every_connection_usable(server: RedisServer) -> None:
    clock = Clock()
    bounds: dict[str, Any] = {"max_connections": 4, "socket_timeout_s": 1.5, "lookup_timeout_s": 1.5, "l0_max_entries": 0}
    async with opened(server.url, clock=clock, **bounds) as cache:
        key = await keep(cache)
        server.pause()
        try:
            assert set(await asyncio.gather(*(cache.get(key) for _ in range(100)))) == {None}
            assert (cache.stats.errors, cache.stats.busy) == (16, 84)
        finally:
            server.resume()
        await recovered(cache, clock, key)
        assert await asyncio.gather(*(cache.get(key) for _ in range(16))) == [answer()] * 16


async def test_writes_that_redis_does_not_take_are_bounded_and_counted(server: RedisServer) -> None:
    async with opened(server.url, write_queue_len=2, socket_timeout_s=1.5, lookup_timeout_s=1.5, breaker_failures=1) as cache:
        await keep(cache)
        server.pause()
        try:
            for number in range(10):
                cache.put(cache.key(SCOPE, [number]), answer(number))
            assert (cache.stats.queued, cache.stats.dropped) == (2, 8)
            await cache.drain()
            assert (cache.stats.queued, cache.stats.dropped, cache.stats.errors) == (0, 10, 1)
        finally:
            server.resume()


async def test_a_killed_redis_costs_the_hit_and_comes_back(own_server: RedisServer) -> None:
    clock = Clock()
    async with opened(own_server.url, clock=clock, l0_max_entries=0, breaker_failures=2) as cache:
        key = await keep(cache)
        own_server.kill()
        assert [await cache.get(key), await cache.get(key)] == [None, None]
        assert cache.stats.breaker_open
        clock.now += OPEN_S
        assert await cache.get(key) is None
        await cache.drain()
        assert cache.stats.breaker_open
        own_server.start()
        await recovered(cache, clock, key)
        assert await keep(cache) == key
        assert await cache.get(key) == answer()


async def test_a_redis_that_was_never_there_costs_the_hit(own_server: RedisServer) -> None:
    own_server.kill()
    async with opened(own_server.url) as cache:
        key = await keep(cache)
        assert await cache.get(key) == answer()
        assert await cache.get(cache.key(SCOPE, [1])) is None
        assert cache.stats.errors == 3


async def test_while_redis_is_left_alone_no_lookup_waits_for_it(own_server: RedisServer) -> None:
    async with opened(own_server.url, breaker_failures=1) as cache:
        own_server.kill()
        assert await cache.get(cache.key(SCOPE, [1])) is None
        lookup = cache.get(cache.key(SCOPE, [1]))
        with pytest.raises(StopIteration):
            lookup.send(None)
        assert cache.stats.errors == 1


async def test_cancelled_lookups_never_give_another_key_a_wrong_answer(server: RedisServer) -> None:
    async with opened(server.url, max_connections=1, l0_max_entries=0) as cache:
        keys = [await keep(cache, number) for number in range(8)]
        for turns in range(60):
            task = asyncio.create_task(cache.get(keys[turns % 8]))
            for _ in range(turns % 12):
                await asyncio.sleep(0)
            task.cancel()
            following = (turns + 1) % 8
            assert await cache.get(keys[following]) == answer(following)
            await asyncio.gather(task, return_exceptions=True)
        assert (cache.stats.corrupt, cache.stats.errors) == (0, 0)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$99999999999\r\nabc",
        b"*99999999\r\n",
        b"+OK\r\n" * 50,
        b"-ERR no\r\n" * 50,
        b"%1\r\n",
        b"\xff\x00\n\r" * 9,
    ],
    ids=["closes", "http", "endless string", "endless list", "always OK", "always an error", "half a map", "bytes"],
)
async def test_something_else_on_the_port_of_redis_costs_the_hit(reply: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while reply and await reader.read(1000):
            writer.write(reply)
        writer.close()

    impostor = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = impostor.sockets[0].getsockname()[1]
    async with opened(f"redis://127.0.0.1:{port}", socket_timeout_s=0.1, lookup_timeout_s=0.1) as cache:
        key = cache.key(SCOPE, [1])
        assert await cache.get(key) is None
        assert cache.stats.errors + cache.stats.corrupt >= 1
    impostor.close()
    await impostor.wait_closed()


async def test_closing_while_redis_hangs_ends(server: RedisServer) -> None:
    async with opened(server.url, socket_timeout_s=1.5, lookup_timeout_s=1.5) as cache:
        await keep(cache)
        server.pause()
        try:
            cache.put(cache.key(SCOPE, [1]), answer(1))
            await cache.close()
        finally:
            server.resume()
