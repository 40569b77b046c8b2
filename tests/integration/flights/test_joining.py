"""Requests that join flights, in two gateways: one makes the answer, and whoever leaves passes it on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import redis

from prompt_cache.entry import CachedDelta
from prompt_cache.flights import Failed, Flights, Maker, Seat, Vacant
from tests.fakes.flight_gateways import (
    END,
    KEY,
    NAMES,
    delta,
    deltas,
    gateway,
    lead_of,
)
from tests.fakes.gateway_fleet import eventually
from tests.fakes.redis_servers import RedisServer


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
        await eventually(lambda: answerer.began_at == [0])
        there = [asyncio.create_task(answerer.ask(other)) for _ in range(2)]
        assert other.shared is not None
        await eventually(lambda: other.shared is not None and other.shared.stats.following == 1)
        here[0].cancel()
        await eventually(lambda: answerer.began_at == [0, 5])
        here[1].cancel()
        await eventually(lambda: answerer.began_at == [0, 5, 6])
        answerer.going.set()
        assert await asyncio.gather(*there) == [(deltas(10), END)] * 2
        assert (len(one), len(other)) == (0, 0)


async def test_a_seat_that_is_left_while_it_takes_over_leaves_nobody_in_the_lead(server: RedisServer, raw: redis.Redis) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other:
        lead = await lead_of(one)
        flights = Flights(other)
        async with flights.join(KEY) as seat:
            lead.release("the test")
            await eventually(lambda: seat.flight.vacant)
            reading = asyncio.create_task(seat.read(0))
            await asyncio.sleep(0)
            assert not seat.flight.vacant
        await eventually(lambda: other.stats.led == 1)
        await eventually(lambda: not raw.exists(NAMES.lease) and not other.stats.leading)
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
