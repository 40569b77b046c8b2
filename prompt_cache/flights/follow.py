"""Who makes an answer and who reads it: first within the process, then among the gateways that share a Redis."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable

from prompt_cache.entry import CachedDelta, FinishReason
from prompt_cache.flights.flight import Batch, Flight, Vacant
from prompt_cache.flights.publisher import Lead
from prompt_cache.flights.shared import Follow, SharedFlights
from prompt_cache.keys import CacheKey


class Flights:
    """The answers being made now, by question.

    Args:
        shared: flights of other gateways, started and closed by the caller; None = there are none.
    """

    def __init__(self, shared: SharedFlights | None) -> None:
        self.shared = shared
        self._rooms: dict[CacheKey, _Room] = {}

    def __len__(self) -> int:
        return len(self._rooms)

    @contextlib.asynccontextmanager
    async def join(self, key: CacheKey, *, only_here: bool = False) -> AsyncIterator[Seat]:
        """Joins the making of an answer. Takes at most a lookup's time longer than nothing.

        Leaving the body before the answer has ended is harmless: another seat takes over, in this process or in another one.

        Args:
            key: name of the answer.
            only_here: whether other gateways are not asked, as where Redis has just failed.
        """
        room = self._rooms.get(key)
        if room is None or room.flight.end is not None:
            room = self._rooms[key] = _Room(self, key)
        seat = Seat(room, only_here=only_here)
        try:
            with room.flight.reader():
                try:
                    await seat.settle()
                    yield seat
                finally:
                    seat.leave()
        finally:
            if not room.flight.num_readers:
                self.empty(room)

    def empty(self, room: _Room) -> None:
        """Forgets a room; for `_Room`."""
        if self._rooms.get(room.key) is room:
            del self._rooms[room.key]


class Seat:
    """One request's place at the making of an answer.

    Attributes:
        flight: The answer so far.
        maker: Not None = this request is to make what is missing: the tokens behind `flight.token_ids`.
    """

    def __init__(self, room: _Room, *, only_here: bool = False) -> None:
        self.flight: Flight = room.flight
        self.maker: Maker | None = None
        self._room = room
        self._only_here = only_here
        self._left = False

    async def read(self, after: int) -> Batch:
        """Waits for deltas from number `after` on, or the end. No delta and no end: the seat has become the maker's.

        A seat that is left meanwhile hears that it is vacant.

        Raises:
            ValueError: the reader cannot have had so many.
        """
        while True:
            batch = await self.flight.read(after)
            if not isinstance(batch.state, Vacant):
                return batch
            if batch.deltas:
                return Batch(batch.deltas, None)
            await self.settle()
            if self.maker is not None:
                return Batch((), None)
            if self._left:
                return batch

    async def settle(self) -> None:
        """Finds out who makes the answer, if nobody here does."""
        if not self.flight.take_over():
            return
        try:
            makes = self._only_here or await self._room.board()
        except BaseException:
            self.flight.vacate("who was to make it left")
            raise
        if makes and self._left:
            self.flight.vacate("who was to make it left")
        elif makes:
            self.maker = self._room.maker = Maker(self._room)

    def leave(self) -> None:
        """Leaves what it made to another seat, unless its maker is detached; for `Flights`."""
        self._left = True
        if self.maker is not None and not self.maker.detached:
            self.maker.leave()


class Maker:
    """Fills a flight. After it left, or the answer ended, what it adds is dropped.

    Attributes:
        detached: Whether it goes on when its seat is left.
    """

    def __init__(self, room: _Room) -> None:
        self.detached = False
        self._room: _Room | None = room
        self._on_abandoned: Callable[[], None] | None = None

    def put(self, deltas: Iterable[CachedDelta]) -> None:
        """Adds deltas. The last ones and `finish` belong together, with no await between: others may go on from any point in between."""
        if self._room is not None:
            (self._room.lead or self._room.flight).put(deltas)

    def finish(self, finish_reason: FinishReason, prompt_tokens: int) -> None:
        """Ends the answer."""
        if self._room is not None:
            (self._room.lead or self._room.flight).finish(finish_reason, prompt_tokens)
            self._done()

    def fail(self, reason: str) -> None:
        """Gives up for all seats in the process, which read `Failed`; a seat in another one takes over."""
        if self._room is not None:
            (self._room.lead or self._room.flight).fail(reason)
            self._done()

    def leave(self) -> None:
        """Leaves the rest to another seat, unless the answer has ended."""
        if self._room is not None:
            room, self._room = self._room, None
            room.maker = None
            room.flight.vacate("its maker left")

    def detach(self, on_abandoned: Callable[[], None]) -> None:
        """Lets it outlive its seat: it goes on as long as anybody reads.

        Args:
            on_abandoned: called once if all seats are left before the end; nothing that it adds then is kept.
        """
        self.detached = True
        self._on_abandoned = on_abandoned

    def abandon(self) -> None:
        """Tells it that nobody reads."""
        self._room = None
        if self._on_abandoned is not None:
            self._on_abandoned()

    def _done(self) -> None:
        assert self._room is not None, "it has not left"
        self._room.maker = None
        self._room.empty()
        self._room = None


class _Room:
    """A flight, and what ties it to other gateways."""

    def __init__(self, flights: Flights, key: CacheKey) -> None:
        self.key = key
        self.flight = Flight(on_abandoned=self._abandoned)
        self.maker: Maker | None = None
        self.lead: Lead | None = None
        self._follow: Follow | None = None
        self._flights = flights
        self._is_abandoned = False

    async def board(self) -> bool:
        """Finds out who makes the answer; returns whether it is left to this process."""
        if self.lead is not None and not self.lead.lost:
            # The maker left, and the next one is here.
            return True
        self.lead = self._follow = None
        shared = self._flights.shared
        boarded = await shared.board(self.key, self.flight) if shared is not None else None
        if isinstance(boarded, Lead):
            self.lead = boarded
        elif isinstance(boarded, Follow):
            self._follow = boarded
        if self._is_abandoned:
            self._let_go()
            return True
        return self._follow is None

    def empty(self) -> None:
        """Lets nobody else in."""
        self._flights.empty(self)

    def _let_go(self) -> None:
        if self.lead is not None:
            self.lead.release("nobody at its gateway waits for it")
            self.lead = None
        if self._follow is not None:
            self._follow.close()

    def _abandoned(self) -> None:
        self._is_abandoned = True
        self.empty()
        self._let_go()
        if self.maker is not None:
            self.maker.abandon()
