"""One request's answers under way: on replicas, or replayed from the prompt cache."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

from gateway.clients.compute import Attempt, ComputePeer
from gateway.clients.fleet import Fleet
from gateway.flow.answer import Answer, Delta
from gateway.flow.ready_answers import ReadyAnswers
from prompt_cache import CachedAnswer
from triserve.rpc.errors import Overloaded, ServiceError, Unavailable
from triserve.v1 import common_pb2, compute_pb2

logger = logging.getLogger(__name__)

CacheStatus: TypeAlias = Literal["hit", "miss", "bypass"]

# How often a choice that has delivered nothing is tried again on another replica.
_MAX_RETRIES = 1


class Piece(NamedTuple):
    """A delta of one of a request's choices."""

    choice: int
    delta: Delta


class Usage(NamedTuple):
    """What a request cost."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Timeline(NamedTuple):
    """Where a request's time went, in milliseconds; of several choices, the slowest at each stage."""

    tokenize_ms: float
    queue_ms: float
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """A prompt as compute gets it."""

    token_ids: Sequence[int]
    # Leading ids that belong to the system prompt.
    system_tokens: int
    # Time in the tokenizer; 0 for prompts that came as ids.
    encode_us: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One answer to be made, with nothing left to default."""

    index: int
    prompt: EncodedPrompt
    # Index of the prompt in the request.
    prompt_index: int
    sampling: common_pb2.SamplingParams
    stopping: common_pb2.StoppingParams


class Generation(Protocol):
    """What a door reads a request's answers from."""

    cache: CacheStatus

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason and was taken."""

    async def next(self) -> list[Piece]:
        """Waits for more; an empty list after a long time without any. For a reader that does not stream: waits for ends alone.

        Raises:
            ServiceError: a choice failed. What came before it was returned by earlier calls.
        """

    def usage(self) -> Usage:
        """What the request has cost so far."""

    def timeline(self) -> Timeline:
        """Where its time has gone so far."""

    def close(self) -> None:
        """Lets go of everything; aborts what has not ended."""


class LiveGeneration:
    """Answers being made by replicas.

    Args:
        choices: what is to be made.
        fleet: who makes it.
        request_id: server-made.
        tenant: whose request it is.
        priority: lower is sooner; where it is not 0, replicas that look at it alone are asked.
        remaining_ms: gives the time the request has left.
        stream: whether the reader wants each delta.
        idle_s: the reader is woken with nothing after this long; None = never.
        keep_deltas: whether to remember deltas for the prompt cache.
        cache: what the prompt cache said.
        on_retry: called when a choice is tried again elsewhere.
        on_gap: called with the seconds between two deltas of a choice as the reader takes them; None = nobody wants to know.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        fleet: Fleet,
        request_id: str,
        tenant: str,
        priority: int,
        remaining_ms: Callable[[], int],
        stream: bool,
        idle_s: float | None,
        keep_deltas: bool,
        cache: CacheStatus,
        on_retry: Callable[[], None],
        on_gap: Callable[[float], None] | None,
    ) -> None:
        self.cache = cache
        self.choices = choices
        self._fleet = fleet
        self._request_id = request_id
        self._tenant = tenant
        self._priority = priority
        self._remaining_ms = remaining_ms
        self._on_retry = on_retry
        self._on_gap = on_gap
        self._took_at: dict[int, float] = {}
        self._ready = ReadyAnswers(idle_s=idle_s)
        self.answers = [Answer(choice.index, self._ready.put, every_delta=stream, keep_deltas=keep_deltas) for choice in choices]
        self._attempts: dict[int, Attempt] = {}
        self._failed_on: dict[int, list[ComputePeer]] = {}
        self._unfinished = len(choices)
        self._failure: ServiceError | None = None

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason and was taken."""
        return self._unfinished == 0

    def submit(self) -> None:
        """Gives every choice to a replica.

        Raises:
            Unavailable: no replica is ready.
        """
        for choice in self.choices:
            self._submit(choice, epoch=0, without=())

    async def next(self) -> list[Piece]:
        """See `Generation.next`."""
        if self._failure is not None:
            raise self._failure
        pieces = []
        for answer in await self._ready.get():
            delta = answer.take()
            if delta is not None:
                pieces.append(Piece(answer.index, delta))
                self._unfinished -= delta.finish_reason is not None
                self._note_gap(answer.index)
            if answer.error is not None and not self._retried(answer, answer.error):
                self._failure = answer.error
        if self._failure is not None and not pieces:
            raise self._failure
        return pieces

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

    def close(self) -> None:
        """Aborts every attempt that has not ended."""
        self._ready.close()
        for attempt in self._attempts.values():
            attempt.cancel()

    def _note_gap(self, index: int) -> None:
        if self._on_gap is None:
            return
        now = time.monotonic()
        before = self._took_at.get(index)
        self._took_at[index] = now
        if before is not None:
            self._on_gap(now - before)

    def _submit(self, choice: Choice, *, epoch: int, without: Sequence[ComputePeer]) -> None:
        by_priority = self._priority != 0
        peer = self._fleet.choose(tenant=self._tenant, prompt_token_ids=choice.prompt.token_ids, by_priority=by_priority, without=without)
        if peer is None:
            raise Unavailable(f"no compute process {'that serves by priority ' if by_priority else ''}is ready")
        request = compute_pb2.SubmitRequest(
            epoch=epoch,
            request_id=self._request_id,
            tenant=self._tenant,
            token_ids=choice.prompt.token_ids,
            system_tokens=choice.prompt.system_tokens,
            sampling=choice.sampling,
            stopping=choice.stopping,
            deadline_ms=self._remaining_ms(),
            priority=self._priority,
        )
        self._attempts[choice.index] = peer.submit(request, self.answers[choice.index])

    def _retried(self, answer: Answer, error: ServiceError) -> bool:
        """Tries a failed choice again elsewhere, if it has delivered nothing and may be tried again."""
        attempt = self._attempts[answer.index]
        failed_on = self._failed_on.setdefault(answer.index, [])
        failed_on.append(attempt.peer)
        if not answer.blank or not isinstance(error, Unavailable | Overloaded) or len(failed_on) > _MAX_RETRIES:
            return False
        answer.restart()
        try:
            self._submit(self.choices[answer.index], epoch=attempt.epoch + 1, without=failed_on)
        except Unavailable:
            answer.fail(error)
            return False
        logger.info("%s choice %d is tried again on another replica: %s", self._request_id, answer.index, error.message)
        self._on_retry()
        return True


class ReplayedGeneration:
    """An answer the prompt cache had, delivered in the deltas in which it was made.

    Args:
        answer: what the cache had.
    """

    cache: CacheStatus = "hit"

    def __init__(self, answer: CachedAnswer) -> None:
        self._answer = answer
        self._delivered = 0

    @property
    def finished(self) -> bool:
        """Whether every delta was taken."""
        return self._delivered == len(self._answer.deltas)

    async def next(self) -> list[Piece]:
        """The next delta."""
        # A long answer is many deltas, and a reader that is never made to wait would keep the event loop for itself.
        await asyncio.sleep(0)
        kept = self._answer.deltas[self._delivered]
        self._delivered += 1
        return [Piece(0, Delta(kept.text, list(kept.token_ids), [], self._answer.finish_reason if self.finished else None))]

    def usage(self) -> Usage:
        """What the request cost when it was made; no KV was needed now."""
        return Usage(self._answer.prompt_tokens, sum(len(delta.token_ids) for delta in self._answer.deltas), 0)

    def timeline(self) -> Timeline:
        """No stage had any work."""
        return Timeline(0, 0, 0, 0)

    def close(self) -> None:
        """Does nothing: nothing is held."""
