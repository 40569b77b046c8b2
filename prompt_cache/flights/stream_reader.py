"""Waits for what leaders in other processes publish: one connection for all flights that this process follows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from prompt_cache.flights.flight import Failed, Finished, Flight
from prompt_cache.flights.records import RecordCodec
from prompt_cache.flights.scripts import FlightLimits, FlightNames, FlightScripts, StreamEntry, id_order
from prompt_cache.guarded_redis import GuardedRedis
from prompt_cache.keys import CacheKey
from prompt_cache.sealing import CorruptEntry, UnknownKey

# Entries of one stream in one reply.
_ENTRIES_PER_READ = 64
# How long a read waits in Redis at most: a flight that is joined meanwhile waits as long for its next deltas.
_MAX_BLOCK_MS = 10
# How long nothing is followed after Redis refused to read: or those who wait would board again and again.
_REFUSED_S = 1.0


@dataclass(eq=False)
class Followed:
    """A flight of another process.

    Attributes:
        key: Of the answer.
        names: In Redis.
        flight: What came so far.
        holder: Token of its leader.
        last_id: Of the last entry read.
        num_streamed: Deltas up to there.
    """

    key: CacheKey
    names: FlightNames
    flight: Flight
    holder: bytes
    last_id: bytes
    num_streamed: int


def absorb(codec: RecordCodec, key: CacheKey, entries: Iterable[StreamEntry], flight: Flight, num_streamed: int) -> int:
    """Adds a stream's next entries to a flight.

    Deltas that the flight has already must be the same ones: a stream that was begun anew after Redis lost it is followed only if it tells the
    same answer in the same pieces.

    Args:
        codec: opens records.
        key: of the answer.
        entries: in order.
        flight: what is there; somebody makes it.
        num_streamed: deltas of the stream before these.

    Returns:
        Deltas of the stream up to and with these.

    Raises:
        CorruptEntry: they are no entries of this answer, or do not go on from what is there.
    """
    for entry in entries:
        record = codec.decode(key, entry.data)
        if record.first > num_streamed or record.first > len(flight):
            raise CorruptEntry
        known = flight.since(record.first)[: len(record.deltas)]
        if known != record.deltas[: len(known)]:
            raise CorruptEntry
        flight.put(record.deltas[len(known) :])
        num_streamed = max(num_streamed, record.first + len(record.deltas))
        if isinstance(record.end, Finished):
            if num_streamed != len(flight):
                raise CorruptEntry
            flight.finish(*record.end)
    return num_streamed


class _Round(NamedTuple):
    # Tokens of the leases that were looked at, by lease; None = there is none.
    holders: dict[str, bytes | None]
    # New entries, by stream.
    entries: dict[str, list[StreamEntry]]


class StreamReader:
    """Reads the streams of all flights that this process follows.

    One command reads all of them, which a cluster refuses where they are on several of its nodes: there, answers are made in each gateway.

    Args:
        guarded: the same Redis, for its limits of time and its breaker.
        redis: a client of one connection; closed here.
        scripts: count what Redis refuses.
        codec: opens records.
        timeout_s: within which Redis has to answer.
        limits: bounds.
        clock: seconds, never falling.

    Attributes:
        leaders_lost: Flights whose leader was lost.
        corrupt: Flights whose stream was none.
    """

    def __init__(
        self,
        guarded: GuardedRedis,
        redis: Redis,
        scripts: FlightScripts,
        codec: RecordCodec,
        *,
        timeout_s: float,
        limits: FlightLimits,
        clock: Callable[[], float],
    ) -> None:
        self.leaders_lost = 0
        self.corrupt = 0
        self._guarded = guarded
        self._redis = redis
        self._scripts = scripts
        self._codec = codec
        self._block_ms = max(1, min(_MAX_BLOCK_MS, int(timeout_s * 1000 / 2)))
        self._limits = limits
        self._clock = clock
        self._followed: set[Followed] = set()
        self._looked_at = 0.0
        self._refused_until = 0.0
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._followed)

    def start(self) -> None:
        """Starts the background task; it does nothing until there is something to follow."""
        self._task = asyncio.create_task(self._run(), name="prompt-cache-stream-reader")

    async def close(self) -> None:
        """Ends the task; every flight followed loses its leader."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self._lose(list(self._followed), "this gateway closes")
        await self._guarded.attempt(self._redis.aclose())

    def add(self, followed: Followed) -> bool:
        """Follows a flight, whose state changes as its leader's does; returns whether it does: not if there are too many, or Redis refused lately."""
        if self._task is None or len(self._followed) >= self._limits.max_follows or self._clock() < self._refused_until:
            return False
        self._followed.add(followed)
        self._some.set()
        return True

    def remove(self, followed: Followed) -> None:
        """Follows it no more."""
        self._followed.discard(followed)
        if not self._followed:
            self._some.clear()

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            followed = list(self._followed)
            found = await self._guarded.attempt(self._round(followed)) if self._guarded.usable() else None
            if found is None:
                self._lose(followed, "Redis does not answer")
                continue
            for one in followed:
                if one in self._followed:
                    self._advance(one, found)
            if found.entries:
                # What comes in the meantime is read together.
                await asyncio.sleep(self._limits.publish_every_s / 2)

    async def _round(self, followed: Sequence[Followed]) -> _Round | None:
        # Several may follow one stream from different places: it is read from the first, and each skips what it has.
        cursors: dict[str, bytes] = {}
        for one in followed:
            cursors[one.names.stream] = min(cursors.get(one.names.stream, one.last_id), one.last_id, key=id_order)
        holders: dict[str, bytes | None] = {}
        if self._clock() >= self._looked_at + self._limits.look_every_s:
            leases = sorted({one.names.lease for one in followed})
            async with self._redis.pipeline(transaction=False) as pipeline:
                for lease in leases:
                    pipeline.get(lease)
                replies = await pipeline.execute(raise_on_error=False)
            # A lease that cannot be read is none.
            holders = {lease: reply if isinstance(reply, bytes) else None for lease, reply in zip(leases, replies, strict=True)}
            self._looked_at = self._clock()
        try:
            reply = await cast(Awaitable[Any], self._redis.xread(cast(Any, cursors), count=_ENTRIES_PER_READ, block=self._block_ms))
        except ResponseError as error:
            # Of one stream among them, maybe: all of them are boarded again, which clears away what is none.
            self._scripts.note_refusal(error)
            self._refused_until = self._clock() + _REFUSED_S
            return None
        # Which of the two depends on the client's release and the protocol.
        streams = [(name, *rest) for name, rest in reply.items()] if isinstance(reply, dict) else reply
        entries = {
            name.decode(): [StreamEntry.of(entry_id, list(fields.values())) for entry_id, fields in found] for name, found in streams
        }
        return _Round(holders, entries)

    def _advance(self, one: Followed, found: _Round) -> None:
        entries = [entry for entry in found.entries.get(one.names.stream, []) if id_order(entry.entry_id) > id_order(one.last_id)]
        try:
            one.num_streamed = absorb(self._codec, one.key, entries, one.flight, one.num_streamed)
            gave_up = self._codec.decode(one.key, entries[-1].data).end if entries else None
        except UnknownKey:
            self._lose([one], "its secret is unknown here")
            return
        except CorruptEntry:
            self.corrupt += 1
            self._lose([one], "its stream is damaged")
            return
        if one.flight.end is not None:
            self.remove(one)
        elif isinstance(gave_up, Failed):
            self._lose([one], gave_up.reason)
        elif found.holders.get(one.names.lease, one.holder) != one.holder:
            self._lose([one], "its leader's lease ended")
        elif entries:
            one.last_id = entries[-1].entry_id

    def _lose(self, followed: Iterable[Followed], reason: str) -> None:
        for one in followed:
            self.remove(one)
            self.leaders_lost += 1
            one.flight.vacate(reason)
