"""Who makes and who reads within one process: one at a time, passed on when it leaves, and nothing is left behind."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from prompt_cache.entry import CachedDelta
from prompt_cache.flights import Failed, Finished, Flights, Maker, Seat
from prompt_cache.keys import CacheKey
from tests.fakes.fake_stages import until

KEY = CacheKey("aa", "11" * 32)
END = Finished("stop", 7)


def delta(number: int) -> CachedDelta:
    return CachedDelta(f"{number} ", (number,))


def maker_of(seat: Seat) -> Maker:
    assert seat.maker is not None
    return seat.maker


async def test_the_first_seat_makes_and_the_others_read() -> None:
    flights = Flights(None)
    async with flights.join(KEY) as first, flights.join(KEY) as second, flights.join(CacheKey("aa", "22" * 32)) as elsewhere:
        assert (first.maker is None, second.maker is None, elsewhere.maker is None) == (False, True, False)
        maker_of(first).put([delta(0)])
        maker_of(first).finish(*END)
        for seat in (first, second):
            assert tuple(await seat.read(0)) == ((delta(0),), END)
    assert len(flights) == 0


async def test_when_the_maker_leaves_one_reader_makes_the_rest_and_hears_of_it_after_what_was_delivered() -> None:
    flights = Flights(None)
    async with flights.join(KEY) as second, flights.join(KEY) as third:
        maker_of(second).put([delta(0)])
        maker_of(second).leave()
        assert tuple(await third.read(0)) == ((delta(0),), None)
        assert third.maker is None
        assert tuple(await third.read(1)) == ((), None)
        assert third.flight.token_ids == [0]
        maker_of(second).put([delta(99)])
        maker_of(second).finish(*END)
        maker_of(third).put([delta(1)])
        maker_of(third).finish("length", 1)
        assert tuple(await second.read(1)) == ((delta(1),), Finished("length", 1))


async def test_a_failure_is_told_to_all_and_the_next_request_begins_anew() -> None:
    flights = Flights(None)
    async with flights.join(KEY) as first, flights.join(KEY) as second:
        maker_of(first).fail("no replica")
        assert (await second.read(0)).state == Failed("no replica")
        async with flights.join(KEY) as third:
            assert third.flight is not first.flight
            maker_of(third).finish(*END)


async def test_a_maker_that_is_detached_goes_on_until_nobody_reads() -> None:
    flights = Flights(None)
    abandoned: list[str] = []
    async with flights.join(KEY) as reader:
        maker = maker_of(reader)
        maker.detach(lambda: abandoned.append("now"))
        async with flights.join(KEY):
            pass
        maker.put([delta(0)])
        assert (await reader.read(0)).deltas == (delta(0),)
        assert abandoned == []
    assert (abandoned, len(flights)) == (["now"], 0)
    maker.put([delta(1)])
    maker.finish(*END)
    maker.leave()
    assert (len(reader.flight), reader.flight.end) == (1, None)


class SlowBoarding:
    """Flights of other gateways, of which nobody hears for a while, and then nothing."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()
        self.asked = 0

    async def board(self, key: CacheKey, flight: object) -> None:
        self.asked += 1
        await self.heard.wait()


async def test_whoever_is_cancelled_while_boarding_leaves_it_to_the_next() -> None:
    shared = SlowBoarding()
    flights = Flights(cast(Any, shared))

    async def ask() -> list[CachedDelta]:
        async with flights.join(KEY) as seat:
            got: list[CachedDelta] = []
            while seat.flight.end is None or len(got) < len(seat.flight):
                if seat.maker is not None:
                    seat.maker.put([delta(0)])
                    seat.maker.finish(*END)
                got += (await seat.read(len(got))).deltas
            return got

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    await until(lambda: shared.asked == 1)
    asking[0].cancel()
    await until(lambda: shared.asked == 2)
    shared.heard.set()
    assert await asyncio.gather(*asking[1:]) == [[delta(0)]] * 2
    with pytest.raises(asyncio.CancelledError):
        await asking[0]
    assert (shared.asked, len(flights)) == (2, 0)
