"""Flights across gateways: one leads, all hear the same, and a dead leader is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest
import redis

from prompt_cache.entry import CachedDelta
from prompt_cache.flights import Finished, Follow, Lead, LeaderLost
from prompt_cache.keys import CacheKey
from tests.fakes.flight_gateways import (
    END,
    KEY,
    LIMITS,
    NAMES,
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
from tests.fakes.redis_servers import RedisServer


async def test_of_200_boardings_at_once_in_three_gateways_one_leads_and_all_hear_every_delta_once(server: RedisServer) -> None:
    async with gateway(server.url) as one, gateway(server.url) as two, gateway(server.url) as three:
        seats = await asyncio.gather(*([one, two, three][number % 3].board(KEY) for number in range(200)))
        leads = [seat for seat in seats if isinstance(seat, Lead)]
        follows = [seat for seat in seats if isinstance(seat, Follow)]
        assert (len(leads), len(follows)) == (1, 199)
        reading = [asyncio.create_task(read_all(follow)) for follow in follows]
        for number in range(50):
            leads[0].put([delta(number)])
            await asyncio.sleep(0)
        leads[0].finish(*END)
        assert await asyncio.gather(*reading) == [(deltas(50), END)] * 199
        await eventually(lambda: not one.stats.following + two.stats.following + three.stats.following + one.stats.leading)


async def test_a_follower_reads_live_what_came_before_and_after_it_boarded(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other:
        lead = await lead_of(one)
        lead.put(deltas(3))
        await published(raw)
        follow = await follow_of(other)
        assert (await follow.read(0)).deltas == tuple(deltas(3))
        lead.put(deltas(1, 3))
        assert (await follow.read(3)).deltas == (delta(3),)
        lead.finish("length", 5)
        assert (await follow.read(4)).state == Finished("length", 5)


async def test_a_finished_flight_can_be_joined_until_it_expires(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other:
        lead = await lead_of(one)
        lead.put(deltas(2))
        lead.finish(*END)
        await eventually(lambda: not one.stats.leading)
        assert await read_all(await follow_of(other)) == (deltas(2), END)
        raw.delete(NAMES.lease)
        assert await read_all(await follow_of(other)) == (deltas(2), END), "its lease is not what makes it whole"
        assert 0 < raw.pttl(NAMES.stream) <= LIMITS.linger_s * 1000
        raw.delete(NAMES.stream)
        assert (await lead_of(other)).flight.token_ids == []


async def test_everything_in_redis_expires_and_nothing_can_be_read_there(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url) as one:
        lead = await lead_of(one)
        await follow_of(one)
        lead.put(deltas(2))
        await published(raw)
        assert set(raw.keys()) == {name.encode() for name in NAMES}
        assert all(raw.pttl(name) > 0 for name in NAMES)
        (fields,) = entries_of(raw, NAMES.stream)
        assert b"piece" not in b"".join(fields.values())
        assert NAMES.lease.split("{")[1].split("}")[0] == KEY.digest, "a cluster keeps both on one node"


async def test_when_the_leader_dies_one_waiter_takes_over_from_what_was_delivered_and_the_others_follow_it(
    server: RedisServer, raw: redis.Redis
) -> None:
    async with gateway(server.url) as dead, contextlib.AsyncExitStack() as stack:
        lead = await lead_of(dead)
        lead.put(deltas(3))
        await published(raw)
        waiting = [await stack.enter_async_context(gateway(server.url, WATCHFUL)) for _ in range(4)]
        follows = [await follow_of(shared) for shared in waiting]
        got: list[list[CachedDelta]] = [[] for _ in follows]
        reading = [asyncio.create_task(read_all(follow, some)) for follow, some in zip(follows, got, strict=True)]
        await eventually(lambda: all(len(some) == 3 for some in got))
        raw.delete(NAMES.lease)
        assert all(isinstance(error, LeaderLost) for error in await asyncio.gather(*reading, return_exceptions=True))
        seats = await asyncio.gather(*(follow.take_over() for follow in follows))
        (successor,) = (seat for seat in seats if isinstance(seat, Lead))
        others = [seat for seat in seats if isinstance(seat, Follow)]
        assert len(others) == 3
        assert successor.flight.token_ids == [0, 1, 2]
        successor.put(deltas(2, 3))
        successor.finish(*END)
        for follow in others:
            assert await read_all(follow) == (deltas(5), END)


async def test_a_leader_that_hangs_is_replaced_when_its_lease_ends(server: RedisServer) -> None:
    async with gateway(server.url, dataclasses.replace(LIMITS, lease_s=1)) as hung, gateway(server.url, WATCHFUL) as other:
        lead = await lead_of(hung)
        lead.put(deltas(1))
        follow = await follow_of(other)
        got = list((await follow.read(0)).deltas)
        assert hung._publisher._task is not None
        hung._publisher._task.cancel()
        assert await lost(follow) == "its leader's lease ended"
        assert got == deltas(1)
        assert isinstance(await follow.take_over(), Lead)


async def test_a_leader_that_lost_its_lease_writes_nothing_more(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other, gateway(server.url) as third:
        old = await lead_of(one)
        old.put(deltas(1))
        await published(raw)
        raw.pexpire(NAMES.lease, 1)
        await eventually(lambda: not raw.exists(NAMES.lease))
        new = await lead_of(other)
        assert new.flight.token_ids == [0]
        old.put([CachedDelta("of the old one", (99,))])
        await eventually(lambda: old.lost)
        old.put([CachedDelta("still", (98,))])
        new.put(deltas(1, 1))
        new.finish(*END)
        assert await read_all(await follow_of(third)) == (deltas(2), END)
        assert one.stats.leads_lost == 1


async def test_a_leader_that_gives_up_is_replaced_at_once(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other:
        lead = await lead_of(one)
        lead.put(deltas(2))
        follow = await follow_of(other)
        lead.fail("no replica is ready")
        got: list[CachedDelta] = []
        with pytest.raises(LeaderLost, match="no replica is ready"):
            await read_all(follow, got)
        assert got == deltas(2)
        assert isinstance(await follow.take_over(), Lead)


async def test_a_gateway_that_closes_hands_its_flights_over_with_all_that_was_made(server: RedisServer) -> None:
    async with gateway(server.url) as other:
        async with gateway(server.url) as one:
            lead = await lead_of(one)
            follow = await follow_of(other)
            lead.put(deltas(2))
        assert await lost(follow) == "its gateway closes"
        assert lead.lost is False
        successor = await follow.take_over()
        assert isinstance(successor, Lead)
        assert successor.flight.token_ids == [0, 1]


async def test_a_lease_is_renewed_while_nothing_is_made(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url, dataclasses.replace(LIMITS, lease_s=30)) as one:
        lead = await lead_of(one)
        raw.pexpire(NAMES.lease, 10_000)
        lead.renewed_at -= 11
        lead._publisher.wake()
        await eventually(lambda: raw.pttl(NAMES.lease) > 20_000)


async def test_a_leader_that_nobody_follows_writes_seldom_and_one_that_is_followed_at_once(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url, dataclasses.replace(LIMITS, publish_unwatched_every_s=3600)) as one, gateway(server.url) as other:
        lead, beside = await lead_of(one), await lead_of(one, CacheKey("aa", "22" * 32))
        lead.put(deltas(1))
        await published(raw)
        lead.put(deltas(1, 1))
        beside.finish(*END)
        await eventually(lambda: one.stats.leading == 1)
        assert raw.xlen(NAMES.stream) == 1
        follow = await follow_of(other)
        lead.renewed_at -= 3600
        lead.put(deltas(1, 2))
        await published(raw, 2)
        lead.put(deltas(1, 3))
        lead.put(deltas(1, 4))
        got = 0
        while got < 5:
            got += len((await follow.read(got)).deltas)


async def test_a_boarding_that_is_cancelled_leaves_nobody_in_the_lead(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url) as one:
        for turns in range(40):
            boarding = asyncio.create_task(one.board(KEY))
            for _ in range(turns % 20):
                await asyncio.sleep(0)
            cancelled = boarding.cancel()
            seat = (await asyncio.gather(boarding, return_exceptions=True))[0]
            if isinstance(seat, Lead):
                seat.release("the test")
            assert cancelled or isinstance(seat, Lead)
            await eventually(lambda: "prompt-cache-boarding" not in {task.get_name() for task in asyncio.all_tasks()})
            await eventually(lambda: not raw.exists(NAMES.lease) and not one.stats.leading)
