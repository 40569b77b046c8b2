"""An answer that is made for several clients at once: identical questions are answered by the model once, here and in all gateways of a Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from gateway.flow.generations.answer import Delta, FinishReason
from gateway.flow.generations.generation import CacheReport, Piece, Timeline, Usage, Writer
from gateway.flow.generations.live_generation import LiveGeneration
from gateway.flow.generations.waking import done_or_woken
from gateway.tools.answer_parser import AnswerForm
from prompt_cache import CachedDelta
from prompt_cache.flights import Failed, Finished, Maker, Seat
from prompt_cache.flights.flight import Batch
from triserve.rpc.errors import Internal, ServiceError, from_proto
from triserve.v1 import common_pb2

# Makes an answer, or what is missing of it behind tokens that were made before.
Make = Callable[[Maker, Sequence[int]], LiveGeneration]


def reason_of(error: ServiceError) -> str:
    """A failure in one line, for those who follow."""
    return f"{error.reason} {error.message}"


class FollowedGeneration:
    """An answer that another client has the model make, until that one leaves: then this client may be the one who goes on.

    Args:
        seat: at the making of the answer.
        prompt_token_ids: what it answers.
        make: makes the rest of it.
        idle_s: `next` returns nothing after so long; None = never.
    """

    def __init__(self, seat: Seat, prompt_token_ids: Sequence[int], *, make: Make, idle_s: float | None) -> None:
        self.cache = CacheReport("hit-exact", 0)
        self.saved_s = 0.0
        self.system_fingerprint = ""
        self.form: AnswerForm | None = None
        self._seat = seat
        self._prompt_token_ids = prompt_token_ids
        self._make = make
        self._idle_s = idle_s
        self._num_taken = 0
        self._num_tokens = 0
        self._woken = asyncio.Event()
        self._reading: asyncio.Task[Batch] | None = None
        self._making: asyncio.Task[None] | None = None
        self._finished = False
        if seat.maker is not None:
            self._go_on()

    @property
    def finished(self) -> bool:
        """Whether all of it was taken."""
        return self._finished

    async def next(self) -> list[Piece]:
        """See `Generation.next`."""
        while (batch := await self._read()) is not None:
            self._num_taken += len(batch.deltas)
            if isinstance(batch.state, Finished):
                self._finished = True
                return [self._piece(batch.deltas, batch.state.finish_reason)]
            if batch.deltas:
                return [self._piece(batch.deltas, None)]
            if isinstance(batch.state, Failed):
                reason, _, message = batch.state.reason.partition(" ")
                raise from_proto(common_pb2.Error(reason=reason, message=message))
            # Nobody makes it any more, and this client is to.
            self._go_on()
        return []

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

    def write_to(self, writer: Writer) -> None:
        """Does nothing: what others make comes in batches."""

    def wake(self) -> None:
        """See `Generation`."""
        self._woken.set()

    def close(self) -> None:
        """Stops reading, and making if it did; whose seat it is lets another one go on."""
        for task in (self._reading, self._making):
            if task is not None:
                task.cancel()

    async def _read(self) -> Batch | None:
        """What comes next; None where the reader was woken, or nothing came for too long."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._seat.read(self._num_taken), name="follow")
        if not await done_or_woken(self._reading, self._woken, idle_s=self._idle_s):
            return None
        reading, self._reading = self._reading, None
        return reading.result()

    def _piece(self, deltas: Sequence[CachedDelta], finish_reason: FinishReason | None) -> Piece:
        token_ids = [token for delta in deltas for token in delta.token_ids]
        self._num_tokens += len(token_ids)
        return Piece(0, Delta("".join(delta.text for delta in deltas), token_ids, [], finish_reason))

    def _go_on(self) -> None:
        maker = self._seat.maker
        if maker is None or self._making is not None:
            raise Internal("an answer that is shared has stopped")
        self._making = asyncio.create_task(self._make_rest(maker), name="flight")

    async def _make_rest(self, maker: Maker) -> None:
        """Makes the rest of the answer, as long as this client is there."""
        try:
            with contextlib.closing(self._make(maker, self._seat.flight.token_ids)) as generation:
                while not generation.finished:
                    await generation.next()
        except ServiceError as error:
            maker.fail(reason_of(error))
