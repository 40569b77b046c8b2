"""Flights on a Redis that hangs, restarts, forgets, refuses, and holds what nobody has put there."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from prompt_cache.entry import CachedDelta
from prompt_cache.flights import Follow, Lead
from prompt_cache.flights.scripts import FlightNames
from prompt_cache.generations import Generations
from prompt_cache.keys import CacheKey
from tests.fakes.flight_gateways import (
    END,
    KEY,
    LIMITS,
    NAMES,
    SECRET,
    WATCHFUL,
    delta,
    deltas,
    entries_of,
    follow_of,
    gateway,
    lead_of,
    lost,
    published,
    read_all,
)
from tests.fakes.gateway_fleet import eventually
from tests.fakes.redis_servers import RedisServer, plain


@pytest.mark.parametrize("kind", ["more", "end"])
@pytest.mark.parametrize("rubbish", [b"", b"x" * 5000, b"\x02" + bytes(40)], ids=["empty", "long", "alike"])
async def test_rubbish_in_the_stream_costs_the_flight_and_is_removed(
    server: RedisServer, raw: redis.Redis, rubbish: bytes, kind: str
) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other:
        raw.xadd(NAMES.stream, {kind: rubbish})
        assert await one.board(KEY) is None
        await eventually(lambda: not raw.exists(*NAMES))
        lead = await lead_of(one)
        follow = await follow_of(other)
        raw.xadd(NAMES.stream, {kind: rubbish, "second": b"x"})
        assert await lost(follow) == "its stream is damaged"
        assert (one.stats.corrupt, other.stats.corrupt, lead.lost) == (1, 1, False)


async def test_a_record_of_another_question_or_place_is_rubbish_and_one_of_another_secret_tells_nothing(
    server: RedisServer, raw: redis.Redis
) -> None:
    other_key = CacheKey("aa", "22" * 32)
    async with gateway(server.url) as one, gateway(server.url, secret=b"another secret, as long") as stranger:
        lead = await lead_of(one, other_key)
        lead.put(deltas(1))
        stream = FlightNames.of(other_key).stream
        await eventually(lambda: raw.xlen(stream))
        assert await stranger.board(other_key) is None
        lead.put(deltas(1, 2))
        await eventually(lambda: raw.xlen(stream) == 2)
        _, second = entries_of(raw, stream)
        raw.xadd(NAMES.stream, second)
        assert await one.board(KEY) is None
        raw.delete(*NAMES)
        third = CacheKey("aa", "33" * 32)
        raw.xadd(FlightNames.of(third).stream, second)
        assert await one.board(third) is None


async def test_a_flight_whose_secret_is_unknown_here_is_left_alone_and_known_ones_are_followed(
    server: RedisServer, raw: redis.Redis
) -> None:
    new = b"a newer secret, as long"
    async with gateway(server.url, secret=new, old_secrets=(SECRET,)) as one, gateway(server.url) as behind:
        lead = await lead_of(one)
        lead.put(deltas(2))
        await published(raw)
        assert await behind.board(KEY) is None
        assert behind.stats.corrupt == 0
        lead.finish(*END)
        await eventually(lambda: not one.stats.leading)
        assert not lead.lost
    raw.flushall()
    async with gateway(server.url) as behind, gateway(server.url, secret=new, old_secrets=(SECRET,)) as one:
        old = await lead_of(behind)
        follow = await follow_of(one)
        old.put(deltas(2))
        old.finish(*END)
        assert await read_all(follow) == (deltas(2), END)


@pytest.mark.parametrize("missing", ["-evalsha", "-xadd", "-xread", "-eval"])
async def test_a_user_of_redis_who_may_not_do_it_flies_alone_and_the_cache_goes_on(
    server: RedisServer, raw: redis.Redis, missing: str
) -> None:
    raw.script_flush()
    cast(Any, raw).execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", "~*", "+@all", missing)
    url = server.url.replace("redis://", "redis://limited:secret@")
    async with gateway(server.url) as able, gateway(url, breaker_failures=1, clock=lambda: 0.0) as limited:
        for number in range(3):
            key = CacheKey("aa", f"{number:064x}")
            seat = await limited.board(key)
            if isinstance(seat, Lead):
                seat.put(deltas(1))
            await lead_of(able, CacheKey("aa", f"{number + 9:064x}"))
            seat = await limited.board(CacheKey("aa", f"{number + 9:064x}"))
            if isinstance(seat, Follow) and missing == "-xread":
                await lost(seat)
        await eventually(lambda: limited.stats.refused)
        if missing == "-xread":
            assert limited.stats.followed == 1, "who cannot follow does not try again at once"
        assert not limited._guarded.breaker_open
    cast(Any, raw).execute_command("ACL", "DELUSER", "limited")


async def test_keys_of_another_type_are_cleared_away(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url) as one:
        raw.set(NAMES.stream, "x")
        raw.rpush(NAMES.lease, "x")
        lead = await lead_of(one)
        lead.put(deltas(1))
        await published(raw)
        raw.delete(NAMES.stream)
        raw.set(NAMES.stream, "x")
        lead.put(deltas(1, 1))
        await eventually(lambda: lead.lost)
        assert one.stats.leads_lost == 1


async def test_an_answer_too_long_to_be_shared_is_made_alone_from_there_on(server: RedisServer) -> None:
    for limits in (dataclasses.replace(LIMITS, max_records=2), dataclasses.replace(LIMITS, max_bytes=100)):
        key = CacheKey("aa", f"{limits.max_records:064x}")
        async with gateway(server.url, limits) as one, gateway(server.url, dataclasses.replace(limits, look_every_s=0.005)) as other:
            lead = await lead_of(one, key)
            follow = await follow_of(other, key)
            count = 0
            while one.stats.leading:
                lead.put(deltas(1, count))
                count += 1
                await asyncio.sleep(0.001)
            await lost(follow)
            assert await follow.take_over() is None
            assert follow.flight.token_ids == list(range(len(follow.flight)))
            assert await one.board(key) is None


async def test_more_flights_than_may_be_followed_are_made_alone(server: RedisServer) -> None:
    async with gateway(server.url) as one, gateway(server.url, dataclasses.replace(LIMITS, max_follows=1)) as other:
        keys = [CacheKey("aa", f"{number:064x}") for number in range(2)]
        for key in keys:
            await lead_of(one, key)
        follow = await follow_of(other, keys[0])
        assert await other.board(keys[1]) is None
        assert other.stats.busy == 1
        follow.close()
        await follow_of(other, keys[1])


async def test_a_redis_that_hangs_costs_a_boarding_a_lookups_time_and_followers_their_leader(server: RedisServer) -> None:
    async with gateway(server.url) as one, gateway(server.url, lookup_timeout_s=1.0, breaker_failures=2) as other:
        lead = await lead_of(one)
        lead.put(deltas(1))
        follow = await follow_of(other)
        assert (await follow.read(0)).deltas == (delta(0),)
        server.pause()
        try:
            assert await lost(follow) == "Redis does not answer"
            assert await other.board(KEY) is None
            assert await other.board(KEY) is None, "at once: the breaker is open"
            assert other.stats.alone == 2
        finally:
            server.resume()
        lead.finish(*END)
        await eventually(lambda: not one.stats.leading)


async def test_closing_while_redis_hangs_ends(server: RedisServer) -> None:
    async with gateway(server.url, lookup_timeout_s=1.0) as one, gateway(server.url) as other:
        lead = await lead_of(one)
        led_elsewhere = CacheKey("aa", "22" * 32)
        await lead_of(other, led_elsewhere)
        follow = await follow_of(one, led_elsewhere)
        server.pause()
        try:
            lead.put(deltas(1))
            await one.close()
        finally:
            server.resume()
        assert lead.lost
        assert follow.flight.vacant


async def test_a_redis_that_restarts_costs_the_flight_and_the_next_one_flies(own_server: RedisServer) -> None:
    async with gateway(own_server.url) as one, gateway(own_server.url) as other:
        lead = await lead_of(one)
        lead.put(deltas(2))
        follow = await follow_of(other)
        assert (await follow.read(0)).deltas == tuple(deltas(2))
        own_server.kill()
        await lost(follow)
        assert await follow.take_over() is None
        own_server.start()
        lead.put(deltas(1, 2))
        await eventually(lambda: lead.lost)
        assert lead.flight.token_ids == [0, 1, 2], "its own readers lost nothing"
        key = CacheKey("aa", "33" * 32)
        again = await lead_of(one, key)
        joined = await follow_of(other, key)
        again.put(deltas(1))
        again.finish(*END)
        assert await read_all(joined) == (deltas(1), END)


async def test_whoever_takes_over_after_redis_lost_the_stream_gives_the_others_what_they_miss(
    server: RedisServer, raw: redis.Redis
) -> None:
    async with gateway(server.url) as one, gateway(server.url, WATCHFUL) as other, gateway(server.url) as third:
        lead = await lead_of(one)
        lead.put(deltas(3))
        follow = await follow_of(other)
        assert (await follow.read(0)).deltas == tuple(deltas(3))
        raw.flushall()
        await lost(follow)
        successor = await follow.take_over()
        assert isinstance(successor, Lead)
        successor.put(deltas(1, 3))
        successor.finish(*END)
        assert await read_all(await follow_of(third)) == (deltas(4), END)


async def test_a_stream_begun_anew_in_other_pieces_is_not_followed(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other, gateway(server.url) as third:
        lead = await lead_of(one)
        lead.put(deltas(2))
        follow = await follow_of(other)
        assert (await follow.read(0)).deltas == tuple(deltas(2))
        raw.flushall()
        anew = await lead_of(third)
        anew.put([CachedDelta("piece 0 piece 1 ", (0, 1))])
        assert await lost(follow) == "its stream is damaged"


async def test_a_redis_that_was_never_there_makes_everybody_alone(own_server: RedisServer) -> None:
    own_server.kill()
    async with gateway(own_server.url) as one:
        assert await one.board(KEY) is None
        assert one.stats.alone == 1


async def test_an_old_redis_without_functions_or_modules_does(tmp_path: Path) -> None:
    server = plain(tmp_path)
    try:
        async with gateway(server.url) as one, gateway(server.url) as other:
            lead = await lead_of(one)
            follow = await follow_of(other)
            lead.put(deltas(2))
            assert (await follow.read(0)).deltas == tuple(deltas(2))
            lead.release("the test")
            await lost(follow)
            successor = await follow.take_over()
            assert isinstance(successor, Lead)
            again = await follow_of(one)
            successor.put(deltas(1, 2))
            successor.finish(*END)
            assert await read_all(again) == (deltas(3), END)
            generations = Generations(one._guarded, clock=time.monotonic)
            number, purged = await generations.current("aa"), await generations.purge("aa")
            assert number is not None
            assert purged is not None
            assert purged > number
    finally:
        server.kill()
