"""One request's answers under way on replicas; replay.py has those that the prompt cache knows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

from gateway.flow.call import Call
from gateway.flow.generations.answer import Answer, Tee
from gateway.flow.generations.generation import CacheReport, Choice, Piece, Timeline, Usage, Writer
from gateway.flow.generations.ready_answers import ReadyAnswers
from gateway.flow.limits import Limits
from gateway.tools.answer_parser import AnswerForm
from triserve.rpc.errors import Internal, Overloaded, ServiceError, Unavailable
from triserve.rpc.traces.spans import OpenSpan, error_type
from triserve.v1 import compute_pb2

logger = logging.getLogger(__name__)

# How often a choice of which nothing was taken is tried again.
_MAX_RETRIES = 3
# Before it goes to a replica that has failed it; doubled each time.
_FIRST_BACKOFF_S = 0.05


class Attempt(Protocol):
    """One attempt at a choice, under way on a replica."""

    @property
    def epoch(self) -> int:
        """Its number, from 0."""

    def cancel(self) -> None:
        """Aborts it, unless it has ended."""


class Replica(Protocol):
    """What makes answers."""

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""

    def submit(self, request: compute_pb2.SubmitRequest, answer: Answer) -> Attempt:
        """Gives it a request; its deltas go to the answer, which fails if the replica is lost."""


class Replicas(Protocol):
    """The replicas there are."""

    def choose(
        self, token_ids: Sequence[int], tenant: str, *, by_priority: bool = False, without: Collection[object] = ()
    ) -> Replica | None:
        """The replica that is to get a prompt of a tenant's; None if none is ready."""

    async def changed(self) -> None:
        """Waits until one becomes ready or stops being so."""


class Observer(Protocol):
    """Who wants to know how a generation fares."""

    def retried(self) -> None:
        """A choice is tried again."""

    def gap(self, seconds: float) -> None:
        """So much time lay between two deltas of a choice, as the reader took them."""


class LiveGeneration:
    """Answers being made by replicas.

    A choice whose replica is lost before the reader took anything of it is tried again, on another replica or on the same one once it is
    back; it goes on from the tokens that came, so that its answer is the one it would have been.

    Args:
        choices: what is to be made.
        call: what they are made for.
        replicas: who makes them.
        limits: bounds on the request.
        remaining_ms: gives the time the request has left.
        cache: what the prompt cache said.
        observer: is told of retries, and of gaps where the client reads deltas.
        begun: tokens of the one choice that were made before.
        tee: is given each delta of it as it comes.
        clock: seconds, never falling.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        call: Call,
        replicas: Replicas,
        limits: Limits,
        remaining_ms: Callable[[], int],
        cache: CacheReport,
        observer: Observer,
        begun: Sequence[int] = (),
        tee: Tee | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self.cache = cache
        self.saved_s = 0.0
        self.system_fingerprint = ""
        self.form: AnswerForm | None = None
        self.choices = choices
        self._call = call
        self._replicas = replicas
        self._retry_wait_s = limits.retry_wait_s
        self._remaining_ms = remaining_ms
        self._observer = observer
        self._took_at: dict[int, float] = {}
        self._ready = ReadyAnswers(idle_s=limits.keep_alive_s if call.stream else None)
        self.answers = [Answer(choice.number, self._arrived, every_delta=call.stream, begun=begun, tee=tee) for choice in choices]
        self._attempts: dict[int, Attempt] = {}
        self._replica_of: dict[int, Replica] = {}
        self._failed_on: dict[int, list[Replica]] = {}
        self._retries: dict[int, asyncio.Task[None]] = {}
        self._given_up: set[int] = set()
        # Of attempts under way, by choice, if the call is traced.
        self._spans: dict[int, OpenSpan] = {}
        self._unfinished = len(choices)
        self._failure: ServiceError | None = None
        self._writer: Writer | None = None

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason and was taken."""
        return not self._unfinished

    @property
    def failure(self) -> ServiceError | None:
        """What a choice failed with, once the reader was told."""
        return self._failure

    def submit(self) -> None:
        """Gives every choice to a replica.

        Raises:
            Unavailable: no replica is ready.
        """
        for choice in self.choices:
            replica = self._choose(choice)
            if replica is None:
                raise Unavailable(f"no compute process {'that serves by priority ' if self._call.priority else ''}is ready")
            self._submit(choice, replica, epoch=0)

    async def next(self) -> list[Piece]:
        """See `Generation.next`."""
        if self._failure is not None:
            raise self._failure
        while True:
            ready = await self._ready.get()
            pieces = [piece for answer in ready.answers if (piece := self._taken(answer)) is not None]
            if self._failure is not None and not pieces:
                raise self._failure
            if pieces or ready.woken:
                return pieces

    def _taken(self, answer: Answer) -> Piece | None:
        """What the answer has for the reader, unless it has failed and is tried again."""
        if answer.error is not None and self._is_retried(answer, answer.error):
            return None
        if answer.error is not None:
            self._failure = self._call.wishes.reworded(answer.error)
        delta = answer.take()
        if delta is None:
            return None
        self._unfinished -= delta.finish_reason is not None
        self._note_gap(answer.index)
        return Piece(answer.index, delta)

    def usage(self) -> Usage:
        """What the request has cost so far; the KV reuse of a prompt is that of its first choice."""
        prompts = {choice.prompt_index: len(choice.prompt.token_ids) for choice in self.choices}
        cached: dict[int, int] = {}
        for choice, answer in zip(self.choices, self.answers, strict=True):
            if answer.started is not None:
                cached.setdefault(choice.prompt_index, answer.started.cached_tokens)
        return Usage(sum(prompts.values()), sum(len(answer.token_ids) for answer in self.answers), sum(cached.values()))

    def timeline(self) -> Timeline:
        """Where its time has gone so far."""
        started = [answer.started for answer in self.answers if answer.started is not None]
        return Timeline(
            max(choice.prompt.encode_us for choice in self.choices) / 1000,
            max((start.queue_us for start in started), default=0) / 1000,
            max((start.prefill_us for start in started), default=0) / 1000,
            max(answer.last_at - answer.first_at for answer in self.answers) * 1000,
        )

    def prompt_token_ids(self, choice: int) -> Sequence[int]:
        """The prompt that a choice answers."""
        return self.choices[choice].prompt.token_ids

    def write_to(self, writer: Writer) -> None:
        """See `Generation`. Ends and failures are left to `next`."""
        self._writer = writer

    def wake(self) -> None:
        """See `Generation`."""
        self._ready.wake()

    def close(self) -> None:
        """Aborts every attempt that has not ended, and those that were to come. Lets go of its reader, which holds it too."""
        self._ready.close()
        self._writer = None
        for retry in self._retries.values():
            retry.cancel()
        for attempt in self._attempts.values():
            attempt.cancel()
        for answer in self.answers:
            answer.abandon()
        for number in list(self._spans):
            self._end_span(self.answers[number])

    def _arrived(self, answer: Answer) -> None:
        """An answer has something for the reader. Called for every delta of every client: whatever goes wrong here is this one's alone."""
        writer = self._writer
        if writer is None or answer.ended or not writer.is_free:
            self._ready.put(answer)
            return
        delta = answer.take()
        if delta is None:
            return
        self._note_gap(answer.index)
        try:
            writer.write(Piece(answer.index, delta))
        except Exception as error:
            logger.error("%s a delta could not be written", self._call.request_id, exc_info=error)
            answer.fail(Internal("a part of the answer could not be written"))

    def _note_gap(self, index: int) -> None:
        if not self._call.stream:
            return
        now = self._clock()
        before = self._took_at.get(index)
        self._took_at[index] = now
        if before is not None:
            self._observer.gap(now - before)

    def _choose(self, choice: Choice, *, without: Sequence[Replica] = ()) -> Replica | None:
        return self._replicas.choose(choice.prompt.token_ids, self._call.tenant, by_priority=bool(self._call.priority), without=without)

    def _submit(self, choice: Choice, replica: Replica, *, epoch: int) -> None:
        answer = self.answers[choice.number]
        request = compute_pb2.SubmitRequest(
            epoch=epoch,
            request_id=self._call.request_id,
            tenant=self._call.tenant,
            token_ids=choice.prompt.token_ids,
            generated_token_ids=answer.token_ids,
            system_tokens=choice.prompt.system_tokens,
            sampling=choice.sampling,
            stopping=choice.stopping,
            deadline_ms=self._remaining_ms(),
            priority=self._call.priority,
            hidden_states=self._call.hidden_states,
        )
        if self._call.span is not None:
            span = self._spans[choice.number] = self._call.span.child("attempt", kind="client")
            span.attributes |= {"triserve.choice": choice.number, "triserve.epoch": epoch}
            request.traceparent = span.context.traceparent
        self._replica_of[choice.number] = replica
        self._attempts[choice.number] = replica.submit(request, answer)

    def _end_span(self, answer: Answer) -> None:
        """The attempt at a choice that is traced has ended."""
        span = self._spans.pop(answer.index)
        span.attributes["gen_ai.usage.output_tokens"] = len(answer.token_ids)
        if answer.finish_reason is None:
            span.error = error_type(answer.error) if answer.error is not None else "cancelled"
        span.end(at=answer.last_at if answer.finish_reason is not None else None)

    def _is_retried(self, answer: Answer, error: ServiceError) -> bool:
        """Has a failed choice tried again, if nothing of it was taken and another attempt may succeed."""
        failed_on = self._failed_on.setdefault(answer.index, [])
        failed_on.append(self._replica_of[answer.index])
        if (
            answer.index in self._given_up
            or not answer.untouched
            or len(failed_on) > _MAX_RETRIES
            or not isinstance(error, Unavailable | Overloaded)
        ):
            return False
        choice = self.choices[answer.index]
        replica = self._choose(choice, without=failed_on)
        if replica is None and (isinstance(error, Overloaded) or not self._retry_wait_s):
            # A full replica is not less full for being asked again at once; its client is to wait.
            return False
        if answer.index in self._spans:
            self._end_span(answer)
        answer.resume(anew=choice.sampling.HasField("top_logprobs") or choice.sampling.HasField("prompt_logprobs"))
        if replica is not None:
            self._resubmit(choice, replica, error)
        else:
            self._retries[choice.number] = asyncio.create_task(self._resubmit_later(choice, error), name="retry")
        return True

    async def _resubmit_later(self, choice: Choice, error: ServiceError) -> None:
        """Waits for a replica, those that have failed the choice included, and gives it the choice."""
        failed_on = self._failed_on[choice.number]
        try:
            async with asyncio.timeout(self._retry_wait_s):
                # One that takes requests and loses them, as without a sampler, is not asked again and again.
                await self._sleep(_FIRST_BACKOFF_S * 2 ** (len(failed_on) - 1))
                while (replica := self._choose(choice, without=failed_on) or self._choose(choice)) is None:
                    await self._replicas.changed()
        except TimeoutError:
            self._given_up.add(choice.number)
            self.answers[choice.number].fail(error)
            return
        self._resubmit(choice, replica, error)

    def _resubmit(self, choice: Choice, replica: Replica, error: ServiceError) -> None:
        self._submit(choice, replica, epoch=self._attempts[choice.number].epoch + 1)
        num_tokens = len(self.answers[choice.number].token_ids)
        logger.info("%s choice %d is tried again from token %d on: %s", self._call.request_id, choice.number, num_tokens, error.message)
        self._observer.retried()
