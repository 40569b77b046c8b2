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
from gateway.flow.answer_forms import AnswerForms
from gateway.flow.call import Call
from gateway.flow.generations.answer import Tee
from gateway.flow.generations.flights import FollowedGeneration, reason_of
from gateway.flow.generations.generation import CacheReport, Choice, Generation
from gateway.flow.generations.live_generation import LiveGeneration, Observer
from gateway.flow.generations.replay import ReplayedGeneration
from gateway.flow.generations.system2_attention import RewrittenGeneration, rewriting, rewritten
from gateway.flow.limits import Limits
from gateway.flow.order import Order, Stages
from gateway.flow.preparation import Preparation
from gateway.flow.record import Record, Unobserved
from gateway.flow.resolve import check_priority, check_shape, check_template_reads
from gateway.flow.search.making import SearchMaker
from gateway.flow.search.search_generation import SearchGeneration
from gateway.flow.served_model import ServedModel, ServedNames
from gateway.metrics import Metrics
from prompt_cache.flights import Flights, Maker, Seat
from prompt_cache.semantic.lookup import Explained
from triserve.rpc.errors import DeadlineExceeded, Internal, InvalidRequest, ServiceError, Unavailable

logger = logging.getLogger(__name__)

# Answers of the semantic cache that are being checked.
_MAX_AUDITS = 2

_UNOBSERVED = Unobserved()


class StagesNow(Protocol):
    """What is served, which changes while other weights are rolled out."""

    def serving(self) -> Stages:
        """The stages that are to have a request from its beginning to its end.

        Raises:
            Unavailable: there are none.
        """


class Pipeline:
    """Leads requests through the stages.

    Args:
        fleet: the stages.
        cache: the prompt cache; None = there is none.
        flights: answers being made, of which identical questions are given the same; None = of this gateway alone.
        names: names of the model.
        limits: bounds on one request.
        metrics: where to count.
        forms: how answers are taken apart.
        clock: seconds, never falling.

    Attributes:
        cache: the same.
        forms: the same.
    """

    def __init__(
        self,
        *,
        fleet: StagesNow,
        cache: AnswerCache | None,
        names: ServedNames,
        limits: Limits,
        metrics: Metrics,
        flights: Flights | None = None,
        forms: AnswerForms | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.flights = flights if flights is not None else Flights(None)
        self._fleet = fleet
        self.cache = cache
        self.forms = AnswerForms() if forms is None else forms
        self._names = names
        self._limits = limits
        self._metrics = metrics
        self._scopes: set[asyncio.Timeout] = set()
        self._audits: set[asyncio.Task[None]] = set()
        self._preparation = Preparation(limits, metrics, self.forms)
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
            async with self._deadline(call) as scope, contextlib.AsyncExitStack() as stack:
                # The question's vector is made while the prompt is tokenized.
                inquiry = stack.enter_context(contextlib.closing(self.cache.begin(call))) if self.cache is not None else None
                order = await self._ordered(call, ticket, inquiry, scope)
                generation = await (self._rewrite(order, record) if call.system2_attention else self._begin(order, record, stack))
                generation.system_fingerprint = order.stages.model.system_fingerprint
                record.begin(generation)
                with contextlib.closing(generation):
                    yield generation
            record.outcome = "ok"
        except ServiceError as error:
            record.fail(error)
            raise
        except Exception:
            record.fail(Internal("internal error"))
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
            stages = self._fleet.serving()
            return await self.cache.explain(call, stages.model, await self._preparation.choices(call, stages))

    def abort_all(self, error: ServiceError) -> None:
        """Ends every call with the error, now."""
        self._abort_error = error
        for audit in self._audits:
            audit.cancel()
        for scope in [one for one in self._scopes if not one.expired()]:
            scope.reschedule(asyncio.get_running_loop().time())

    async def _begin(self, order: Order, record: Record, stack: contextlib.AsyncExitStack) -> Generation:
        generation = await self._found_or_made(order, record, stack)
        generation.form = self.forms.of(order.call, order.stages.model, prompt_end=order.choices[0].prompt.end)
        return generation

    async def _found_or_made(self, order: Order, record: Record, stack: contextlib.AsyncExitStack) -> Generation:
        call, inquiry = order.call, order.inquiry
        if inquiry is not None:
            kept = await self._look(inquiry, order.stages.model, order.choices, record)
            if kept is not None:
                if inquiry.found is not None and inquiry.found.audit:
                    self._audit(order)
                prompt = order.choices[0].prompt
                return ReplayedGeneration(
                    kept.answer, prompt.token_ids, cache=kept.report, tokens_per_s=self._limits.cache_replay_tokens_per_s
                )
        if call.cache.only:
            raise NotCached("no answer is kept that may be given, and only a kept one was asked for")
        if call.search is not None:
            return self._searched(order, record)
        if inquiry is not None and inquiry.key is not None and inquiry.shares:
            return self._share(
                order, await stack.enter_async_context(self.flights.join(inquiry.key, only_here=inquiry.redis_fails)), record, stack
            )
        return self._submitted(order, record, tee=inquiry.tee(order.prompt_tokens) if inquiry is not None and inquiry.keeps else None)

    async def _rewrite(self, order: Order, record: Record) -> Generation:
        """Has the last turn of what is ordered rewritten, and that answered by the same model."""
        call, model = order.call, order.stages.model
        if call.cache.only:
            raise NotCached("no answer to a turn that is rewritten is kept, and only a kept one was asked for")

        async def reordered(call: Call) -> Order:
            return order._replace(call=call, choices=await self._preparation.choices(call, order.stages), inquiry=None)

        async def answer(turn: str) -> Generation:
            return await self._begin(await reordered(rewritten(call, turn)), record, contextlib.AsyncExitStack())

        first = await reordered(rewriting(call, self._limits))
        return RewrittenGeneration(
            self._submitted(first, record),
            self.forms.of(first.call, model, prompt_end=first.choices[0].prompt.end),
            answer=answer,
            idle_s=self._limits.keep_alive_s if call.stream else None,
            span=first.call.span,
        )

    async def _ordered(self, call: Call, ticket: Ticket, inquiry: Inquiry | None, scope: asyncio.Timeout) -> Order:
        """What is to be made, of the model that serves the call to its end."""
        check_shape(call, self._limits)
        ticket.widen(len(call.prompts) * call.num_made)
        self._names.require(call.model)
        while True:
            stages = self._fleet.serving()
            check_priority(call, stages.model)
            check_template_reads(call, stages.model)
            self.forms.check(call, stages.model)
            try:
                order = Order(call, await self._preparation.choices(call, stages), stages, inquiry, self._clock_of(scope))
            except Unavailable:
                if stages.is_complete or self._fleet.serving() is stages:
                    raise
                continue
            # Meanwhile the model may have been replaced: what has not begun is begun with the one that is served now.
            if stages.is_complete or self._fleet.serving() is stages:
                return order

    async def _look(self, inquiry: Inquiry, model: ServedModel, choices: Sequence[Choice], record: Record) -> Kept | None:
        began = self._clock()
        kept = await inquiry.look(model, choices)
        if inquiry.asked:
            record.looked(self._clock() - began, found=kept is not None)
        return kept

    def _share(self, order: Order, seat: Seat, record: Record, stack: contextlib.AsyncExitStack) -> Generation:
        """Makes an answer that others may follow, or follows one that is made to the same question."""
        inquiry = order.inquiry
        assert inquiry is not None, "who shares has asked the cache"

        def make(maker: Maker, begun: Sequence[int], observer: Observer = _UNOBSERVED) -> LiveGeneration:
            tee = inquiry.tee(order.prompt_tokens, maker, seat.flight.since(0))
            return self._submitted(order, observer, tee=tee, begun=begun)

        if seat.maker is None or seat.flight.token_ids:
            idle_s = self._limits.keep_alive_s if order.call.stream else None
            return FollowedGeneration(seat, order.choices[0].prompt.token_ids, make=make, idle_s=idle_s)
        try:
            generation = make(seat.maker, (), record)
        except ServiceError as error:
            seat.maker.fail(reason_of(error))
            raise
        stack.callback(_tell_failure, seat.maker, generation)
        return generation

    def _searched(self, order: Order, observer: Observer) -> SearchGeneration:
        call = order.call
        make = SearchMaker(order, limits=self._limits, observer=observer, clock=self._clock, answers=lambda: self._live(order, observer))
        return SearchGeneration(
            make.searches(),
            [choice.prompt.token_ids for choice in order.choices[:: call.num_drawn]],
            n=call.n,
            idle_s=self._limits.keep_alive_s if call.stream else None,
            span=call.span,
        )

    def _submitted(self, order: Order, observer: Observer, *, tee: Tee | None = None, begun: Sequence[int] = ()) -> LiveGeneration:
        generation = self._live(order, observer, tee=tee, begun=begun)
        try:
            generation.submit()
        except BaseException:
            generation.close()
            raise
        return generation

    def _live(self, order: Order, observer: Observer, *, tee: Tee | None = None, begun: Sequence[int] = ()) -> LiveGeneration:
        return LiveGeneration(
            order.choices,
            call=order.call,
            replicas=order.stages,
            limits=self._limits,
            remaining_ms=order.remaining_ms,
            cache=CacheReport("miss" if order.inquiry is not None and order.inquiry.asked else "bypass"),
            observer=observer,
            begun=begun,
            tee=tee,
            clock=self._clock,
        )

    def _audit(self, order: Order) -> None:
        """Has the model answer what the cache has answered, in the background and for nobody but the comparison."""
        if len(self._audits) < _MAX_AUDITS:
            task = asyncio.create_task(self._run_audit(order), name="cache-audit")
            self._audits.add(task)
            task.add_done_callback(self._audits.discard)

    async def _run_audit(self, order: Order) -> None:
        assert order.inquiry is not None, "what is compared was found in the cache"
        timeout_s = self._limits.request_timeout_s
        own = order._replace(call=replace(order.call, stream=False, span=None), remaining_ms=lambda: round(1000 * timeout_s))
        try:
            async with asyncio.timeout(timeout_s):
                with contextlib.closing(self._submitted(own, _UNOBSERVED, tee=order.inquiry.tee(order.prompt_tokens))) as generation:
                    while not generation.finished:
                        await generation.next()
        except (ServiceError, TimeoutError) as error:
            logger.info("%s an answer of the prompt cache was not checked: %s", order.call.request_id, error)

    def _clock_of(self, scope: asyncio.Timeout) -> Callable[[], int]:
        return lambda: remaining_ms(scope.when(), asyncio.get_running_loop().time())

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


def _tell_failure(maker: Maker, generation: LiveGeneration) -> None:
    """Those who follow are told what the model failed with; without a failure one of them goes on."""
    if generation.failure is not None:
        maker.fail(reason_of(generation.failure))


def remaining_ms(deadline_s: float | None, now_s: float) -> int:
    """Milliseconds until a deadline, at least 1: 0 would mean none."""
    assert deadline_s is not None, "every call has a deadline"
    return max(1, round((deadline_s - now_s) * 1000))
