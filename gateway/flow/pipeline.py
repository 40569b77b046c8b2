"""The way of a request, top to bottom: admit, tokenize, resolve, look in the cache, submit, deliver, keep."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from gateway.errors import NotCached
from gateway.flow.admission import Ticket
from gateway.flow.answer_cache import AnswerCache, Inquiry, Kept
from gateway.flow.call import Call
from gateway.flow.flights import Flights, FollowedGeneration, Sharing
from gateway.flow.generation import CacheReport, Choice, Generation, LiveGeneration, Observer, Replicas
from gateway.flow.limits import Limits
from gateway.flow.preparation import Preparation, Tokenizers
from gateway.flow.record import Record, Unobserved
from gateway.flow.replay import ReplayedGeneration
from gateway.flow.resolve import check_priority, check_shape, check_template_reads
from gateway.flow.served_model import ServedModel, ServedNames
from gateway.metrics import Metrics
from prompt_cache import CachedDelta
from prompt_cache.semantic.semantic_cache import Explained
from triserve.rpc.errors import DeadlineExceeded, InvalidRequest, ServiceError

logger = logging.getLogger(__name__)

# Answers of the semantic cache that are being checked.
_MAX_AUDITS = 2


class Stages(Replicas, Tokenizers, Protocol):
    """The stages as a request needs them."""

    def model(self) -> ServedModel:
        """What is served now."""


class Pipeline:
    """Leads requests through the stages.

    Args:
        fleet: the stages.
        cache: the prompt cache; None = there is none.
        names: names of the model.
        limits: bounds on one request.
        metrics: where to count.
        clock: seconds, never falling.

    Attributes:
        cache: the same.
    """

    def __init__(
        self,
        *,
        fleet: Stages,
        cache: AnswerCache | None,
        names: ServedNames,
        limits: Limits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._fleet = fleet
        self.cache = cache
        self._names = names
        self._limits = limits
        self._metrics = metrics
        self._scopes: set[asyncio.Timeout] = set()
        self._audits: set[asyncio.Task[None]] = set()
        self._flights = Flights()
        self._preparation = Preparation(fleet, limits, metrics)
        self._abort_error: ServiceError | None = None

    @contextlib.asynccontextmanager
    async def open(self, call: Call, ticket: Ticket) -> AsyncIterator[Generation]:
        """Runs a call; the body of the `async with` reads its generation.

        Leaving the body early, or being cancelled anywhere, aborts the call in every stage at once.

        Args:
            call: what is asked.
            ticket: admits it.

        Raises:
            ServiceError: the call is refused, fails, or its time is over.
        """
        record = Record(call, self._metrics, self._clock)
        try:
            async with self._deadline(call) as scope:
                with contextlib.closing(self.cache.begin(call)) if self.cache is not None else contextlib.nullcontext() as inquiry:
                    generation = await self._begin(call, ticket, scope, record, inquiry)
                    record.generation = generation
                    try:
                        with contextlib.closing(generation):
                            yield generation
                        if inquiry is not None and isinstance(generation, LiveGeneration) and generation.finished:
                            self._keep(generation, inquiry)
                    finally:
                        if inquiry is not None and inquiry.sharing is not None:
                            inquiry.sharing.leave(generation.failure if isinstance(generation, LiveGeneration) else None)
            record.outcome = "ok"
        except ServiceError as error:
            record.outcome = error.reason.lower()
            raise
        except Exception:
            record.outcome = "internal"
            raise
        finally:
            record.close()

    async def explain(self, call: Call) -> list[Explained]:
        """What every step of the semantic cache says of every entry near a call's question. Runs and counts nothing.

        Raises:
            InvalidRequest: there is no semantic cache, or the call has no question for it.
            ServiceError: as `open`.
        """
        check_shape(call, self._limits)
        self._names.require(call.model)
        if self.cache is None:
            raise InvalidRequest("there is no prompt cache here", field="cache")
        async with self._deadline(call):
            model = self._fleet.model()
            return await self.cache.explain(call, model, await self._preparation.choices(call, model))

    def abort_all(self, error: ServiceError) -> None:
        """Ends every call with the error, now."""
        self._abort_error = error
        for audit in self._audits:
            audit.cancel()
        for scope in [one for one in self._scopes if not one.expired()]:
            scope.reschedule(asyncio.get_running_loop().time())

    async def _begin(self, call: Call, ticket: Ticket, scope: asyncio.Timeout, record: Record, inquiry: Inquiry | None) -> Generation:
        check_shape(call, self._limits)
        ticket.widen(len(call.prompts) * call.n)
        self._names.require(call.model)
        model = self._fleet.model()
        check_priority(call, model)
        check_template_reads(call, model)
        choices = await self._preparation.choices(call, model)
        kept = await self._look(inquiry, model, choices, record) if inquiry is not None else None
        if kept is not None and inquiry is not None:
            if inquiry.found is not None and inquiry.found.audit:
                self._audit(call, choices, inquiry)
            (choice,) = choices
            return ReplayedGeneration(
                kept.answer, choice.prompt.token_ids, cache=kept.report, tokens_per_s=self._limits.cache_replay_tokens_per_s
            )
        if call.cache.only:
            raise NotCached("no answer is kept that may be given, and only a kept one was asked for")

        def remaining() -> int:
            return remaining_ms(scope.when(), asyncio.get_running_loop().time())

        if inquiry is not None and inquiry.key is not None and inquiry.shares:
            sharing = self._flights.join(inquiry.key)
            if sharing is not None:
                return self._follow(call, choices, inquiry, sharing, remaining)
            inquiry.sharing = self._flights.open(inquiry.key, prompt_tokens=len(choices[0].prompt.token_ids))
        try:
            return self._submitted(call, choices, inquiry, record, remaining, sharing=inquiry.sharing if inquiry is not None else None)
        except ServiceError as error:
            if inquiry is not None and inquiry.sharing is not None:
                inquiry.sharing.leave(error)
            raise

    async def _look(self, inquiry: Inquiry, model: ServedModel, choices: Sequence[Choice], record: Record) -> Kept | None:
        began = self._clock()
        kept = await inquiry.look(model, choices)
        if inquiry.asked:
            record.looked(self._clock() - began, found=kept is not None)
        return kept

    def _follow(
        self, call: Call, choices: list[Choice], inquiry: Inquiry, sharing: Sharing, remaining: Callable[[], int]
    ) -> FollowedGeneration:
        """Follows the answer that is made to the same question."""
        (choice,) = choices
        num_tokens = len(choice.prompt.token_ids)
        return FollowedGeneration(
            sharing,
            choice.prompt.token_ids,
            go_on=lambda begun: self._submitted(call, choices, None, Unobserved(), remaining, sharing=sharing, begun=begun),
            keep=lambda deltas, finish_reason: inquiry.keep(deltas, finish_reason, prompt_tokens=num_tokens),
            idle_s=self._limits.keep_alive_s if call.stream else None,
        )

    def _submitted(
        self,
        call: Call,
        choices: list[Choice],
        inquiry: Inquiry | None,
        observer: Observer,
        remaining: Callable[[], int],
        *,
        sharing: Sharing | None = None,
        begun: Sequence[int] = (),
    ) -> LiveGeneration:
        generation = LiveGeneration(
            choices,
            call=call,
            replicas=self._fleet,
            limits=self._limits,
            remaining_ms=remaining,
            cache=CacheReport("miss" if inquiry is not None and inquiry.asked else "bypass"),
            keep_deltas=inquiry is not None and inquiry.keeps,
            observer=observer,
            begun=begun,
            tee=sharing.tee if sharing is not None else None,
            clock=self._clock,
        )
        try:
            generation.submit()
        except BaseException:
            generation.close()
            raise
        return generation

    def _keep(self, generation: LiveGeneration, inquiry: Inquiry) -> None:
        answer = generation.answers[0]
        if answer.deltas is not None and answer.finish_reason is not None:
            deltas = [CachedDelta(text, token_ids) for text, token_ids in answer.deltas]
            inquiry.keep(deltas, answer.finish_reason, prompt_tokens=generation.usage().prompt_tokens)

    def _audit(self, call: Call, choices: list[Choice], inquiry: Inquiry) -> None:
        """Has the model answer what the cache has answered, in the background and for nobody but the comparison."""
        if len(self._audits) < _MAX_AUDITS:
            task = asyncio.create_task(self._run_audit(replace(call, stream=False), choices, inquiry), name="cache-audit")
            self._audits.add(task)
            task.add_done_callback(self._audits.discard)

    async def _run_audit(self, call: Call, choices: list[Choice], inquiry: Inquiry) -> None:
        timeout_s = self._limits.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                generation = self._submitted(call, choices, inquiry, Unobserved(), lambda: round(1000 * timeout_s))
                with contextlib.closing(generation):
                    while not generation.finished:
                        await generation.next()
            self._keep(generation, inquiry)
        except (ServiceError, TimeoutError) as error:
            logger.info("%s an answer of the prompt cache was not checked: %s", call.request_id, error)

    @contextlib.asynccontextmanager
    async def _deadline(self, call: Call) -> AsyncIterator[asyncio.Timeout]:
        timeout_s = min(self._limits.request_timeout_s, self._limits.request_timeout_s if call.timeout_s is None else call.timeout_s)
        scope = asyncio.timeout(timeout_s)
        try:
            async with scope:
                self._scopes.add(scope)
                try:
                    yield scope
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            if not scope.expired():
                raise
            raise (self._abort_error or DeadlineExceeded(f"the request took longer than {timeout_s:g} s")) from None


def remaining_ms(deadline_s: float | None, now_s: float) -> int:
    """Milliseconds until a deadline, at least 1: 0 would mean none."""
    assert deadline_s is not None, "every call has a deadline"
    return max(1, round((deadline_s - now_s) * 1000))
