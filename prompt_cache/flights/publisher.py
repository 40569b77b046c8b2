"""Writes what this process leads: for all flights together, so many times a second, and renews their leases."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from prompt_cache.entry import CachedDelta, FinishReason
from prompt_cache.flights.flight import Failed, Finished, Flight
from prompt_cache.flights.records import Record, RecordCodec
from prompt_cache.flights.scripts import FlightLimits, FlightNames, FlightScripts, Put, RecordKind
from prompt_cache.guarded_redis import GuardedRedis
from prompt_cache.keys import CacheKey

logger = logging.getLogger(__name__)

# Flights written in one round trip: it has to end within the time of a lookup.
_PUTS_PER_TRIP = 64
# Leases are renewed so many times before they would end.
_RENEWALS_PER_LEASE = 3


class Lead:
    """An answer that this process makes, for itself and for those that follow.

    Attributes:
        flight: What it delivered; its first deltas may be those of a leader before it. Readers in the process read it here.
        lost: Whether the lease is lost. The answer goes on for the readers in the process; nobody else sees more of it.
        watched: Whether somebody in another process follows, as far as is known; before the first write nothing is.
        renewed_at: When it was last written, or its lease renewed.
    """

    def __init__(
        self, publisher: Publisher, key: CacheKey, names: FlightNames, token: str, flight: Flight, num_published: int, num_bytes: int
    ) -> None:
        self.flight = flight
        self.lost = False
        self._publisher = publisher
        self._key = key
        self._names = names
        self._token = token
        # [0, published) is in the stream · [published, len(flight)) waits for the next write.
        self._num_published = num_published
        self._num_bytes = num_bytes
        self._gave_up: Failed | None = None
        self.watched = True
        self.renewed_at = 0.0

    @property
    def pending(self) -> bool:
        """Whether there is something to write."""
        return self._num_published < len(self.flight) or self._end is not None

    def due(self, now: float, limits: FlightLimits) -> bool:
        """Whether it is to be written now."""
        age_s = now - self.renewed_at
        if not self.pending:
            return age_s >= limits.lease_s / _RENEWALS_PER_LEASE
        return self.watched or self._end is not None or age_s >= limits.publish_unwatched_every_s

    def put(self, deltas: Iterable[CachedDelta]) -> None:
        """Adds what was made; it is written in the background."""
        self.flight.put(deltas)
        self._publisher.wake()

    def finish(self, finish_reason: FinishReason, prompt_tokens: int) -> None:
        """Ends the answer."""
        self.flight.finish(finish_reason, prompt_tokens)
        self._publisher.wake()

    def fail(self, reason: str) -> None:
        """Gives up, for the readers in the process, too. A follower may take over."""
        self.flight.fail(reason)
        self._publisher.wake()

    def release(self, reason: str) -> None:
        """Gives up: a follower may take over. Readers in the process are not told."""
        self._gave_up = Failed(reason)
        self._publisher.wake()

    def next_put(self) -> _Draft:
        """What is to be written now.

        Raises:
            ValueError: what was made cannot be written.
        """
        deltas, end = self.flight.since(self._num_published), self._end
        if not deltas and end is None:
            return _Draft(Put(self._names, self._token, None, b""), 0, False)
        kind: RecordKind = "more" if end is None else "end" if isinstance(end, Finished) else "gone"
        data = self._publisher.codec.encode(self._key, Record(self._num_published, deltas, end))
        return _Draft(Put(self._names, self._token, kind, data), len(deltas), end is not None)

    def was_put(self, draft: _Draft, *, watched: bool, now: float) -> None:
        """Notes that it was written."""
        if draft.num_deltas:
            self.watched = watched
        else:
            self.watched |= watched
        self._num_published += draft.num_deltas
        self._num_bytes += len(draft.put.data)
        self.renewed_at = now

    @property
    def num_bytes(self) -> int:
        """Bytes of the stream."""
        return self._num_bytes

    @property
    def _end(self) -> Finished | Failed | None:
        return self.flight.end or self._gave_up


class _Draft(NamedTuple):
    put: Put
    num_deltas: int
    is_last: bool


class Publisher:
    """Writes for all leads of the process.

    Args:
        guarded: Redis.
        scripts: what is asked of it.
        codec: seals records.
        limits: bounds.
        clock: seconds, never falling.

    Attributes:
        codec: The same.
        leads_lost: Leads whose lease was lost, or that Redis did not let write.
    """

    def __init__(
        self, guarded: GuardedRedis, scripts: FlightScripts, codec: RecordCodec, limits: FlightLimits, clock: Callable[[], float]
    ) -> None:
        self.codec = codec
        self.leads_lost = 0
        self._guarded = guarded
        self._scripts = scripts
        self._limits = limits
        self._clock = clock
        # In the order in which they were last written.
        self._leads: dict[Lead, None] = {}
        self._something = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._leads)

    def start(self) -> None:
        """Starts the background task."""
        self._task = asyncio.create_task(self._run(), name="prompt-cache-publisher")

    async def close(self) -> None:
        """Writes once more what there is, gives every lead up, and ends the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        for lead in self._leads:
            lead.release("its gateway closes")
        while self._leads and await self._publish(list(self._leads)[:_PUTS_PER_TRIP]):
            pass
        for lead in list(self._leads):
            self._lose(lead)

    def add(self, lead: Lead) -> None:
        """Has a lead's flight written, and its lease renewed, until it ends."""
        if self._task is None:
            self._lose(lead)
            return
        lead.renewed_at = self._clock()
        self._leads[lead] = None
        self.wake()

    def wake(self) -> None:
        """Says that there may be something to write."""
        self._something.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._something.wait()
            self._something.clear()
            now = self._clock()
            due = [lead for lead in self._leads if lead.due(now, self._limits)]
            for first in range(0, len(due), _PUTS_PER_TRIP):
                await self._publish(due[first : first + _PUTS_PER_TRIP])
            # What is made in the meantime goes together, and a Redis that fails is not asked faster than one that does not.
            await asyncio.sleep(self._limits.publish_every_s)

    def _pause_s(self) -> float | None:
        """How long nothing may have to be written, if nothing is made meanwhile."""
        if not self._leads:
            return None
        renewal_s = self._limits.lease_s / _RENEWALS_PER_LEASE
        return min(renewal_s, self._limits.publish_unwatched_every_s) if any(lead.pending for lead in self._leads) else renewal_s

    async def _publish(self, leads: list[Lead]) -> bool:
        """Writes what the leads have; returns whether Redis was there."""
        drafts: dict[Lead, _Draft] = {}
        for lead in leads:
            try:
                drafts[lead] = lead.next_put()
            except ValueError as error:
                logger.warning("a flight's record cannot be written: %r", error)
                self._lose(lead)
        now = self._clock()
        puts = [draft.put for draft in drafts.values()]
        if not puts:
            return True
        written = await self._guarded.attempt(self._scripts.put(puts)) if self._guarded.usable() else None
        if written is None:
            # It may have been written all the same: writing it again does no harm.
            for lead in drafts:
                if lead.renewed_at + self._limits.lease_s <= now:
                    self._lose(lead)
                else:
                    self._something.set()
            return False
        for (lead, draft), outcome in zip(drafts.items(), written, strict=True):
            if isinstance(outcome, Exception):
                self._scripts.note_refusal(outcome)
            if isinstance(outcome, Exception) or not outcome.written:
                self._lose(lead)
                continue
            lead.was_put(draft, watched=outcome.watched, now=now)
            if draft.is_last:
                self._leads.pop(lead, None)
            elif lead.num_bytes > self._limits.max_bytes:
                # Whoever boards finds the stream too long, too, and makes the answer alone.
                lead.release("the answer is too long to be shared")
        return True

    def _lose(self, lead: Lead) -> None:
        self._leads.pop(lead, None)
        lead.lost = True
        self.leads_lost += 1
