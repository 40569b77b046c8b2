"""Identical questions at once: one of them is answered by the model, the others follow its answer as it is made.

The answer of a flight has one maker, who is a client of it too. Where the maker leaves - its client is gone, or its time is over - one of
those who follow goes on from what was delivered. Where the model fails, all of them are told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from gateway.flow.answer import Delta, FinishReason
from gateway.flow.generation import CacheReport, LiveGeneration, Piece, Timeline, Usage
from prompt_cache.entry import CachedDelta
from prompt_cache.flights.flight import Failed, Finished, Flight
from prompt_cache.keys import CacheKey
from triserve.rpc.errors import Internal, ServiceError

# Makes the rest of an answer behind tokens that were made before.
Continue = Callable[[Sequence[int]], LiveGeneration]


class Flights:
    """The answers of one gateway that others may follow, by key."""

    def __init__(self) -> None:
        self._flights: dict[CacheKey, Sharing] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: CacheKey) -> Sharing | None:
        """The answer that is being made to the same question; None if there is none: the caller is to `open` it."""
        return self._flights.get(key)

    def open(self, key: CacheKey, *, prompt_tokens: int) -> Sharing:
        """Begins one, of which the caller is the maker."""
        assert key not in self._flights, "the caller has looked"
        sharing = self._flights[key] = Sharing(prompt_tokens, lambda: self._forget(key, sharing))
        return sharing

    def _forget(self, key: CacheKey, sharing: Sharing) -> None:
        if self._flights.get(key) is sharing:
            del self._flights[key]


class Sharing:
    """One answer that others may follow.

    Args:
        prompt_tokens: of the question.
        forget: lets nobody follow it any more.
    """

    def __init__(self, prompt_tokens: int, forget: Callable[[], object]) -> None:
        self.prompt_tokens = prompt_tokens
        self.flight = Flight()
        self.flight.take_over()
        self.error: ServiceError | None = None
        self._forget = forget

    def tee(self, text: str, token_ids: tuple[int, ...], finish_reason: FinishReason | None) -> None:
        """Takes a delta from its maker."""
        self.flight.put([CachedDelta(text, token_ids)])
        if finish_reason is not None:
            self.flight.finish(finish_reason, self.prompt_tokens)

    def leave(self, failure: ServiceError | None = None) -> None:
        """The maker leaves: whoever follows may go on, or is told that the model has failed."""
        if failure is not None:
            self.error = failure
            self.flight.fail(failure.message)
        else:
            self.flight.vacate("its maker left")
        self.close_if_empty()

    def close_if_empty(self) -> None:
        """Forgets an answer that has ended, or that nobody makes and nobody waits for."""
        if self.flight.end is not None or (self.flight.vacant and not self.flight.num_readers):
            self._forget()


class FollowedGeneration:
    """An answer that is made for another client, or that this one has taken over.

    Args:
        sharing: the answer.
        prompt_token_ids: what it answers.
        go_on: makes the rest of it.
        keep: keeps the whole answer, if this client made its end.
        idle_s: `next` returns nothing after so long; None = never.
    """

    def __init__(
        self,
        sharing: Sharing,
        prompt_token_ids: Sequence[int],
        *,
        go_on: Continue,
        keep: Callable[[Sequence[CachedDelta], FinishReason], None],
        idle_s: float | None,
    ) -> None:
        self.cache = CacheReport("hit-exact", 0)
        self.saved_s = 0.0
        self._sharing = sharing
        self._prompt_token_ids = prompt_token_ids
        self._go_on = go_on
        self._keep = keep
        self._idle_s = idle_s
        self._num_taken = 0
        self._num_tokens = 0
        self._woken = asyncio.Event()
        self._maker: asyncio.Task[None] | None = None
        self._finished = False
        self._seat = contextlib.ExitStack()
        self._seat.enter_context(sharing.flight.reader())

    @property
    def finished(self) -> bool:
        """Whether all of it was taken."""
        return self._finished

    async def next(self) -> list[Piece]:
        """See `Generation.next`."""
        flight = self._sharing.flight
        while True:
            if flight.vacant and len(flight) == self._num_taken and flight.take_over():
                self._maker = asyncio.create_task(self._make(), name="flight")
            if not await self._something_came():
                return []
            batch = await flight.read(self._num_taken)
            self._num_taken += len(batch.deltas)
            state = batch.state
            if batch.deltas or isinstance(state, Finished):
                self._finished = isinstance(state, Finished)
                return [self._piece(batch.deltas, state.finish_reason if isinstance(state, Finished) else None)]
            if isinstance(state, Failed):
                raise self._sharing.error or Internal("the answer could not be made")

    def usage(self) -> Usage:
        """What is delivered; this client's prompt was not computed."""
        prompt_tokens = len(self._prompt_token_ids)
        return Usage(prompt_tokens, self._num_tokens, prompt_tokens)

    def timeline(self) -> Timeline:
        """No stage had work for this client alone."""
        return Timeline(0, 0, 0, 0)

    def prompt_token_ids(self, choice: int) -> Sequence[int]:
        """The prompt that its one choice answers."""
        return self._prompt_token_ids

    def wake(self) -> None:
        """See `Generation`."""
        self._woken.set()

    def close(self) -> None:
        """Leaves; if this client made the answer, another may go on."""
        if self._maker is not None:
            self._maker.cancel()
        self._seat.close()
        self._sharing.close_if_empty()

    def _piece(self, deltas: Sequence[CachedDelta], finish_reason: FinishReason | None) -> Piece:
        token_ids = [token for delta in deltas for token in delta.token_ids]
        self._num_tokens += len(token_ids)
        return Piece(0, Delta("".join(delta.text for delta in deltas), token_ids, [], finish_reason))

    async def _something_came(self) -> bool:
        """Waits for the answer to go on; False where the reader was woken, or nothing came for too long."""
        reading = asyncio.ensure_future(self._sharing.flight.read(self._num_taken))
        waking = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({reading, waking}, timeout=self._idle_s, return_when=asyncio.FIRST_COMPLETED)
            return reading.done()
        finally:
            self._woken.clear()
            reading.cancel()
            waking.cancel()

    async def _make(self) -> None:
        """Makes the rest of the answer, as long as this client is there."""
        sharing, failure = self._sharing, None
        try:
            generation = self._go_on(sharing.flight.token_ids)
            with contextlib.closing(generation):
                while not generation.finished:
                    await generation.next()
            end = sharing.flight.end
            assert isinstance(end, Finished), "a generation that is finished has finished its flight"
            self._keep(sharing.flight.since(0), end.finish_reason)
        except ServiceError as error:
            failure = error
        finally:
            sharing.leave(failure)
