"""Flights across gateways: one leads, others follow its stream in Redis, and one of them takes over when it dies."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from redis.asyncio import Redis

from prompt_cache.config import CacheConfig
from prompt_cache.flights.flight import Batch, Flight, Vacant
from prompt_cache.flights.publisher import Lead, Publisher
from prompt_cache.flights.records import RecordCodec
from prompt_cache.flights.scripts import Boarded, FlightLimits, FlightNames, FlightScripts, Put
from prompt_cache.flights.stream_reader import Followed, StreamReader, absorb
from prompt_cache.guarded_redis import GuardedRedis
from prompt_cache.keys import CacheKey
from prompt_cache.sealing import CorruptEntry, UnknownKey

# Boardings under way, for each connection, as with lookups.
_BOARDS_PER_CONNECTION = 4
# Entries of a long stream that are opened before others get a turn of the event loop.
_ENTRIES_PER_TURN = 64


class LeaderLost(Exception):
    """The leader is gone: it gave up, or its lease ended, or its stream cannot be read. What came before was delivered."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class FlightStats:
    """Counters since the start, and sizes now.

    Attributes:
        led: Boardings by how they ended: as the leader,
        followed: as a follower,
        alone: on one's own, as Redis failed, was full or had rubbish.
        busy: Those on one's own because too many boardings were under way, or too many flights were followed.
        leaders_lost: Flights whose leader was lost to this process, which followed it.
        leads_lost: Flights this process led until it lost the lease or Redis.
        corrupt: Streams that were none.
        refused: What Redis answered with an error.
        leading: Flights led now.
        following: Flights followed now.
    """

    led: int
    followed: int
    alone: int
    busy: int
    leaders_lost: int
    leads_lost: int
    corrupt: int
    refused: int
    leading: int
    following: int


class Follow:
    """An answer that another process makes, or made.

    Attributes:
        flight: What was delivered so far; grows as it comes.
    """

    def __init__(self, shared: SharedFlights, followed: Followed) -> None:
        self.flight: Flight = followed.flight
        self._shared = shared
        self._followed = followed

    async def read(self, after: int) -> Batch:
        """Waits for deltas from number `after` on, or the end.

        Raises:
            LeaderLost: the rest must be made by somebody else: see `take_over`.
        """
        batch = await self.flight.read(after)
        if isinstance(batch.state, Vacant):
            if not batch.deltas:
                raise LeaderLost(batch.state.reason)
            batch = Batch(batch.deltas, None)
        return batch

    async def take_over(self) -> Lead | Follow | None:
        """Leads the flight, whose `token_ids` are the start of the answer, or follows the process that was quicker; None = go on alone."""
        self.close()
        self.flight.take_over()
        return await self._shared.board(self._followed.key, self.flight)

    def close(self) -> None:
        """Stops following."""
        self._shared.forget(self._followed)


class SharedFlights:
    """The flights of all gateways that share a Redis, as one of them takes part in them. Nothing here raises for what Redis does.

    Args:
        guarded: Redis; started and closed by the caller, after this.
        reader: a client of the same Redis, of one connection, for nothing but waiting for what others publish; closed here.
        config: of the cache.
        limits: bounds.
        clock: seconds, never falling.
    """

    def __init__(
        self,
        guarded: GuardedRedis,
        reader: Redis,
        config: CacheConfig,
        limits: FlightLimits,
        clock: Callable[[], float],
    ) -> None:
        self._guarded = guarded
        self._codec = RecordCodec(config.secrets)
        self._scripts = FlightScripts(guarded.redis, limits)
        self._publisher = Publisher(guarded, self._scripts, self._codec, limits, clock)
        timeout_s = min(config.socket_timeout_s, config.lookup_timeout_s)
        self._reader = StreamReader(guarded, reader, self._scripts, self._codec, timeout_s=timeout_s, limits=limits, clock=clock)
        self._free = config.max_connections * _BOARDS_PER_CONNECTION
        self._led = self._followed = self._alone = self._busy = self._corrupt = 0

    @property
    def stats(self) -> FlightStats:
        """Counters since the start, and sizes now."""
        return FlightStats(
            led=self._led,
            followed=self._followed,
            alone=self._alone,
            busy=self._busy,
            leaders_lost=self._reader.leaders_lost,
            leads_lost=self._publisher.leads_lost,
            corrupt=self._corrupt + self._reader.corrupt,
            refused=self._scripts.refused,
            leading=len(self._publisher),
            following=len(self._reader),
        )

    async def start(self) -> None:
        """Starts what publishes and what follows, in the background."""
        self._publisher.start()
        self._reader.start()

    async def close(self) -> None:
        """Gives the flights led here up, so that others take over at once, and lets go. Takes little more than a lookup's time."""
        await self._publisher.close()
        await self._reader.close()

    async def board(self, key: CacheKey, flight: Flight | None = None) -> Lead | Follow | None:
        """Leads the answer's flight if nobody does, or follows who does; None = make the answer alone. One round trip.

        Args:
            key: name of the answer.
            flight: what is there of it already; its maker is the caller. None = nothing.

        Returns:
            A lead whose `flight.token_ids` are what a leader before it delivered; a follow whose flight has what was delivered.
        """
        if flight is None:
            flight = Flight()
            flight.take_over()
        if not self._guarded.usable():
            self._alone += 1
            return None
        if not self._free:
            self._busy += 1
            return None
        names, token = FlightNames.of(key), secrets.token_hex(16)
        boarding = asyncio.create_task(self._boarded(names, token), name="prompt-cache-boarding")
        try:
            boarded = await asyncio.shield(boarding)
        except asyncio.CancelledError:
            # Redis may give the lease to somebody who has left; and not before it has answered can it be told so.
            boarding.add_done_callback(lambda _: self._give_back(names, token))
            raise
        if boarded is None:
            self._give_back(names, token)
        seat = None
        if boarded is not None and boarded.state in ("lead", "follow"):
            try:
                seat = await self._seated(key, names, token, boarded, flight)
            except asyncio.CancelledError:
                self._give_back(names, token)
                raise
        self._alone += seat is None
        return seat

    def forget(self, followed: Followed) -> None:
        """Stops following a flight; for `Follow`."""
        self._reader.remove(followed)

    async def _boarded(self, names: FlightNames, token: str) -> Boarded | None:
        self._free -= 1
        try:
            return await self._guarded.attempt(self._scripts.board(names, token))
        finally:
            self._free += 1

    async def _seated(self, key: CacheKey, names: FlightNames, token: str, boarded: Boarded, flight: Flight) -> Lead | Follow | None:
        num_streamed = 0
        try:
            for first in range(0, len(boarded.entries), _ENTRIES_PER_TURN):
                num_streamed = absorb(self._codec, key, boarded.entries[first : first + _ENTRIES_PER_TURN], flight, num_streamed)
                await asyncio.sleep(0)
            if flight.end is not None if boarded.state == "lead" else flight.end is None and not boarded.holder:
                raise CorruptEntry
        except UnknownKey:
            # Its gateway has a newer secret: there it is sound.
            self._give_back(names, token)
            return None
        except CorruptEntry:
            self._corrupt += 1
            self._guarded.enqueue(lambda: self._guarded.redis.delete(*names))
            return None
        if boarded.state == "lead":
            self._led += 1
            num_bytes = sum(len(entry.data) for entry in boarded.entries)
            lead = Lead(self._publisher, key, names, token, flight, num_streamed, num_bytes)
            self._publisher.add(lead)
            return lead
        followed = Followed(key, names, flight, boarded.holder, boarded.entries[-1].entry_id if boarded.entries else b"0-0", num_streamed)
        if flight.end is None and not self._reader.add(followed):
            self._busy += 1
            return None
        self._followed += 1
        return Follow(self, followed)

    def _give_back(self, names: FlightNames, token: str) -> None:
        put = Put(names, token, "drop", b"")
        self._guarded.enqueue(lambda: self._scripts.put([put]))
