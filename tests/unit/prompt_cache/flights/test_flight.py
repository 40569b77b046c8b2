"""One answer being made in the process: every reader gets every delta once, in order, whoever else reads, leaves or makes it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.entry import CachedDelta
from prompt_cache.flights import Batch, Failed, Finished, Flight, Vacant
from tests.fakes.fake_stages import until


def delta(number: int) -> CachedDelta:
    return CachedDelta(f"{number} ", (number,))


def made() -> Flight:
    flight = Flight()
    assert flight.take_over()
    return flight


class Reader:
    """Reads a flight to its end, or until it is told to leave."""

    def __init__(self, flight: Flight) -> None:
        self.got: list[CachedDelta] = []
        self.state: object = None
        self.task = asyncio.create_task(self._read(flight))

    async def _read(self, flight: Flight) -> None:
        with flight.reader():
            while self.state is None:
                batch = await flight.read(len(self.got))
                self.got += batch.deltas
                self.state = batch.state


# What may happen: so many deltas are put, a reader comes, a reader leaves, the event loop turns so many times.
events = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 3)),
        st.tuples(st.just("come"), st.just(0)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
        st.tuples(st.just("turn"), st.integers(0, 3)),
    ),
    max_size=30,
)


@given(events, st.booleans())
def test_every_reader_gets_every_delta_once_and_in_order_whatever_happens_when(events: list[tuple[str, int]], finishes: bool) -> None:
    asyncio.run(_play(events, finishes))


async def _play(events: list[tuple[str, int]], finishes: bool) -> None:
    flight = made()
    readers: list[Reader] = []
    total = 0
    for event, number in events:
        if event == "put":
            flight.put([delta(total + offset) for offset in range(number)])
            total += number
        elif event == "come":
            readers.append(Reader(flight))
        elif event == "leave" and number < len(readers):
            readers.pop(number).task.cancel()
        elif event == "turn":
            for _ in range(number):
                await asyncio.sleep(0)
    if finishes:
        flight.finish("stop", 7)
    else:
        flight.fail("lost")
    await asyncio.gather(*(reader.task for reader in readers))
    for reader in readers:
        assert reader.got == [delta(number) for number in range(total)]
        assert reader.state == (Finished("stop", 7) if finishes else Failed("lost"))
    await until(lambda: flight.num_readers == 0)
    assert flight.token_ids == list(range(total))


async def test_a_slow_reader_finds_what_it_missed_in_one_batch() -> None:
    flight = made()
    for number in range(100):
        flight.put([delta(number)])
    flight.finish("length", 1)
    assert await flight.read(40) == Batch(tuple(delta(number) for number in range(40, 100)), Finished("length", 1))
    assert await flight.read(100) == Batch((), Finished("length", 1))


async def test_a_cancelled_reader_takes_nothing_from_the_others() -> None:
    flight = made()
    one, other = Reader(flight), Reader(flight)
    await until(lambda: flight.num_readers == 2)
    flight.put([delta(0)])
    one.task.cancel()
    flight.put([delta(1)])
    flight.finish("stop", 1)
    await other.task
    assert (one.got, other.got) == ([], [delta(0), delta(1)])


async def test_after_its_end_a_flight_keeps_what_it_has_and_takes_no_more() -> None:
    flight = made()
    flight.finish("stop", 1)
    flight.put([delta(0)])
    flight.fail("late")
    flight.vacate("late")
    assert not flight.take_over()
    assert await flight.read(0) == Batch((), Finished("stop", 1))


@pytest.mark.parametrize("after", [-1, 1])
async def test_a_place_nobody_can_be_at_is_refused(after: int) -> None:
    with pytest.raises(ValueError, match=rf"after is {after}, the flight has 0"):
        await made().read(after)


async def test_when_its_maker_leaves_the_readers_hear_of_it_after_what_it_made_and_one_takes_over() -> None:
    flight = made()
    flight.put([delta(0)])
    flight.vacate("gone")
    assert await flight.read(0) == Batch((delta(0),), Vacant("gone"))
    flight.put([delta(9)])
    assert [flight.take_over() for _ in range(3)] == [True, False, False]
    flight.put([delta(1)])
    assert await flight.read(0) == Batch((delta(0), delta(1)), None)


async def test_nobody_has_begun_a_new_flight() -> None:
    flight = Flight()
    assert flight.vacant
    assert isinstance((await flight.read(0)).state, Vacant)


@pytest.mark.parametrize(("ends", "calls"), [(False, 1), (True, 0)])
async def test_the_last_reader_to_leave_before_the_end_is_told_of(ends: bool, calls: int) -> None:
    told: list[int] = []
    flight = Flight(on_abandoned=lambda: told.append(flight.num_readers))
    flight.take_over()
    with flight.reader():
        with flight.reader():
            assert flight.num_readers == 2
        assert told == []
        if ends:
            flight.finish("stop", 1)
    assert told == [0] * calls
