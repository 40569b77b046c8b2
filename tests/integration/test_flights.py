"""Flights across gateways on a real Redis: one leads, all hear the same, a dead leader is replaced, and Redis may do what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from prompt_cache.config import CacheConfig
from prompt_cache.entry import CachedDelta
from prompt_cache.flights import Failed, Finished, FlightLimits, Flights, Follow, Lead, LeaderLost, Maker, Seat, SharedFlights, Vacant
from prompt_cache.flights.scripts import FlightNames
from prompt_cache.generations import Generations
from prompt_cache.guarded_redis import GuardedRedis, connect
from prompt_cache.keys import CacheKey
from tests.fakes.redis_servers import RedisServer, plain

SECRET = b"0123456789abcdef"
KEY = CacheKey("aa", "11" * 32)
NAMES = FlightNames.of(KEY)
END = Finished("stop", 7)
# Leases that end only when a test ends them.
LIMITS = FlightLimits(lease_s=3600, publish_every_s=0.001, publish_unwatched_every_s=0.001)
# And followers who look so often that nobody waits for it.
WATCHFUL = dataclasses.replace(LIMITS, look_every_s=0.005)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def raw(shared_server: RedisServer) -> Iterator[redis.Redis]:
    """A plain client, to look at and to spoil what flights keep."""
    with redis.Redis.from_url(shared_server.url) as client:
        yield client


@pytest.fixture
def server(shared_server: RedisServer, raw: redis.Redis) -> RedisServer:
    """An empty server that the test leaves running."""
    raw.flushall()
    return shared_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server the test may kill."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()


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


async def until(condition: Callable[[], object]) -> None:
    """Waits for something that the event loop or Redis brings about; pytest's own limit ends it."""
    while not condition():  # noqa: ASYNC110 - what Redis brings about sets no event
        await asyncio.sleep(0.001)


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
    await until(lambda: raw.xlen(NAMES.stream) >= count)


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
        await until(lambda: not one.stats.following + two.stats.following + three.stats.following + one.stats.leading)


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
        await until(lambda: not one.stats.leading)
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
        await until(lambda: all(len(some) == 3 for some in got))
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
        await until(lambda: not raw.exists(NAMES.lease))
        new = await lead_of(other)
        assert new.flight.token_ids == [0]
        old.put([CachedDelta("of the old one", (99,))])
        await until(lambda: old.lost)
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
        await until(lambda: raw.pttl(NAMES.lease) > 20_000)


async def test_a_leader_that_nobody_follows_writes_seldom_and_one_that_is_followed_at_once(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url, dataclasses.replace(LIMITS, publish_unwatched_every_s=3600)) as one, gateway(server.url) as other:
        lead, beside = await lead_of(one), await lead_of(one, CacheKey("aa", "22" * 32))
        lead.put(deltas(1))
        await published(raw)
        lead.put(deltas(1, 1))
        beside.finish(*END)
        await until(lambda: one.stats.leading == 1)
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
            await until(lambda: "prompt-cache-boarding" not in {task.get_name() for task in asyncio.all_tasks()})
            await until(lambda: not raw.exists(NAMES.lease) and not one.stats.leading)


@pytest.mark.parametrize("kind", ["more", "end"])
@pytest.mark.parametrize("rubbish", [b"", b"x" * 5000, b"\x02" + bytes(40)], ids=["empty", "long", "alike"])
async def test_rubbish_in_the_stream_costs_the_flight_and_is_removed(
    server: RedisServer, raw: redis.Redis, rubbish: bytes, kind: str
) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other:
        raw.xadd(NAMES.stream, {kind: rubbish})
        assert await one.board(KEY) is None
        await until(lambda: not raw.exists(*NAMES))
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
        await until(lambda: raw.xlen(stream))
        assert await stranger.board(other_key) is None
        lead.put(deltas(1, 2))
        await until(lambda: raw.xlen(stream) == 2)
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
        await until(lambda: not one.stats.leading)
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
        await until(lambda: limited.stats.refused)
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
        await until(lambda: lead.lost)
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
        await until(lambda: not one.stats.leading)


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
        await until(lambda: lead.lost)
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


@contextlib.asynccontextmanager
async def two_gateways(url: str) -> AsyncIterator[tuple[Flights, Flights]]:
    async with gateway(url) as one, gateway(url) as other:
        yield Flights(one), Flights(other)


class Answerer:
    """Makes an answer of ten deltas, whoever's turn it is, and notes where it was begun. From the fifth on each waits until it may go on."""

    def __init__(self) -> None:
        self.began_at: list[int] = []
        self.going = asyncio.Event()

    async def make(self, maker: Maker, seat: Seat) -> None:
        self.began_at.append(len(seat.flight.token_ids))
        for number in range(len(seat.flight.token_ids), 10):
            maker.put([delta(number)])
            if number >= 4:
                await self.going.wait()
            await asyncio.sleep(0)
        maker.finish(*END)

    async def ask(self, flights: Flights) -> tuple[list[CachedDelta], object]:
        """What a request does."""
        got: list[CachedDelta] = []
        state: object = None
        making: asyncio.Task[None] | None = None
        async with flights.join(KEY) as seat:
            try:
                while state is None:
                    if seat.maker is not None and making is None:
                        making = asyncio.create_task(self.make(seat.maker, seat))
                    batch = await seat.read(len(got))
                    got += batch.deltas
                    state = batch.state
            finally:
                if making is not None:
                    making.cancel()
        return got, state


async def test_200_requests_in_two_gateways_are_one_generation(server: RedisServer) -> None:
    answerer = Answerer()
    answerer.going.set()
    async with two_gateways(server.url) as gateways:
        asked = await asyncio.gather(*(answerer.ask(gateways[number % 2]) for number in range(200)))
        assert asked == [(deltas(10), END)] * 200
        assert answerer.began_at == [0]
        assert [len(flights) for flights in gateways] == [0, 0]


async def test_requests_that_leave_one_after_the_other_pass_the_making_on_in_the_gateway_and_across(server: RedisServer) -> None:
    answerer = Answerer()
    async with two_gateways(server.url) as (one, other):
        here = [asyncio.create_task(answerer.ask(one)) for _ in range(2)]
        await until(lambda: answerer.began_at == [0])
        there = [asyncio.create_task(answerer.ask(other)) for _ in range(2)]
        assert other.shared is not None
        await until(lambda: other.shared is not None and other.shared.stats.following == 1)
        here[0].cancel()
        await until(lambda: answerer.began_at == [0, 5])
        here[1].cancel()
        await until(lambda: answerer.began_at == [0, 5, 6])
        answerer.going.set()
        assert await asyncio.gather(*there) == [(deltas(10), END)] * 2
        assert (len(one), len(other)) == (0, 0)


async def test_a_seat_that_is_left_while_it_takes_over_leaves_nobody_in_the_lead(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other:
        lead = await lead_of(one)
        flights = Flights(other)
        async with flights.join(KEY) as seat:
            lead.release("the test")
            await until(lambda: seat.flight.vacant)
            reading = asyncio.create_task(seat.read(0))
            await asyncio.sleep(0)
            assert not seat.flight.vacant
        await until(lambda: other.stats.led == 1)
        await until(lambda: not raw.exists(NAMES.lease) and not other.stats.leading)
        assert isinstance((await reading).state, Vacant)
        assert (seat.maker, seat.flight.vacant, len(flights)) == (None, True, 0)


async def test_a_failure_is_told_to_its_gateway_and_another_one_goes_on(server: RedisServer) -> None:
    async with two_gateways(server.url) as (one, other), one.join(KEY) as here, one.join(KEY) as beside, other.join(KEY) as there:
        assert (here.maker is not None, beside.maker, there.maker) == (True, None, None)
        assert here.maker is not None
        here.maker.put(deltas(2))
        here.maker.fail("no replica is ready")
        batch = await beside.read(0)
        assert (batch.deltas, batch.state) == (tuple(deltas(2)), Failed("no replica is ready"))
        got = 0
        while there.maker is None:
            got += len((await there.read(got)).deltas)
        assert there.flight.token_ids == [0, 1]
