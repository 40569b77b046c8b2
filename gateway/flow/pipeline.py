"""The way of a request, top to bottom: admit, tokenize, resolve, look in the cache, submit, deliver, keep."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from gateway.errors import NotCached
from gateway.flow.admission import Ticket
from gateway.flow.answer_cache import AnswerCache, Inquiry
from gateway.flow.call import Call, Prompt
from gateway.flow.flights import Flights, FollowedGeneration, Sharing
from gateway.flow.generation import CacheReport, Choice, EncodedPrompt, Generation, LiveGeneration, Observer, Replicas
from gateway.flow.limits import Limits
from gateway.flow.replay import ReplayedGeneration
from gateway.flow.resolve import (
    check_priority,
    check_prompt_ids,
    check_shape,
    check_template_reads,
    choice_seed,
    in_openais_words,
    resolve_sampling,
    resolve_stopping,
)
from gateway.flow.served_model import ServedModel, ServedNames
from gateway.flow.token_rules import check_something_is_left, sampling_strings
from gateway.metrics import Metrics
from prompt_cache import CachedDelta
from triserve.rpc.errors import DeadlineExceeded, InvalidRequest, PromptTooLong, ServiceError
from triserve.v1 import tokenizer_pb2

logger = logging.getLogger(__name__)

# Answers of the semantic cache that are being checked.
_MAX_AUDITS = 2


class Stages(Replicas, Protocol):
    """The stages as a request needs them."""

    def model(self) -> ServedModel:
        """What is served now."""

    async def encode(self, request: tokenizer_pb2.EncodeRequest) -> tokenizer_pb2.EncodeResponse:
        """Encodes a text or chat."""


class Pipeline:
    """Leads requests through the stages.

    Args:
        fleet: the stages.
        cache: the prompt cache; None = there is none.
        names: names of the model.
        limits: bounds on one request.
        metrics: where to count.
        clock: seconds, never falling.
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
        self._cache = cache
        self._names = names
        self._limits = limits
        self._metrics = metrics
        self._scopes: set[asyncio.Timeout] = set()
        self._audits: set[asyncio.Task[None]] = set()
        self._flights = Flights()
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
        record = _Record(call, self._metrics, self._clock)
        try:
            async with self._deadline(call) as scope:
                with contextlib.closing(self._cache.begin(call)) if self._cache is not None else contextlib.nullcontext() as inquiry:
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

    def abort_all(self, error: ServiceError) -> None:
        """Ends every call with the error, now."""
        self._abort_error = error
        for audit in self._audits:
            audit.cancel()
        for scope in [one for one in self._scopes if not one.expired()]:
            scope.reschedule(asyncio.get_running_loop().time())

    async def _begin(self, call: Call, ticket: Ticket, scope: asyncio.Timeout, record: _Record, inquiry: Inquiry | None) -> Generation:
        check_shape(call, self._limits)
        ticket.widen(len(call.prompts) * call.n)
        self._names.require(call.model)
        model = self._fleet.model()
        check_priority(call, model)
        check_template_reads(call, model)
        prompts, ids = await self._tokenize(call, model, sampling_strings(call.wishes))
        choices = self._choices(call, model, prompts, ids)
        kept = await inquiry.look(model, choices) if inquiry is not None else None
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

    def _follow(
        self, call: Call, choices: list[Choice], inquiry: Inquiry, sharing: Sharing, remaining: Callable[[], int]
    ) -> FollowedGeneration:
        """Follows the answer that is made to the same question."""
        (choice,) = choices
        num_tokens = len(choice.prompt.token_ids)
        return FollowedGeneration(
            sharing,
            choice.prompt.token_ids,
            go_on=lambda begun: self._submitted(call, choices, None, _Unobserved(), remaining, sharing=sharing, begun=begun),
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
                generation = self._submitted(call, choices, inquiry, _Unobserved(), lambda: round(1000 * timeout_s))
                with contextlib.closing(generation):
                    while not generation.finished:
                        await generation.next()
            self._keep(generation, inquiry)
        except (ServiceError, TimeoutError) as error:
            logger.info("%s an answer of the prompt cache was not checked: %s", call.request_id, error)

    async def _tokenize(
        self, call: Call, model: ServedModel, strings: tokenizer_pb2.SamplingStrings | None
    ) -> tuple[list[EncodedPrompt], tokenizer_pb2.SamplingIds]:
        """The prompts, and what the strings come to, which go with the first of them."""
        first, *others = call.prompts
        if not others:
            prompt, ids = await self._encode(call, first, model, strings)
            return [prompt], ids
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._encode(call, first, model, strings))]
                tasks += [group.create_task(self._encode(call, prompt, model)) for prompt in others]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result()[0] for task in tasks], tasks[0].result()[1]

    async def _encode(
        self, call: Call, prompt: Prompt, model: ServedModel, strings: tokenizer_pb2.SamplingStrings | None = None
    ) -> tuple[EncodedPrompt, tokenizer_pb2.SamplingIds]:
        if not isinstance(prompt, tokenizer_pb2.EncodeRequest):
            check_prompt_ids(prompt, model, field=call.prompt_field)
            ids = tokenizer_pb2.SamplingIds()
            if strings is not None:
                ids = (await self._ask_tokenizer(call, model, tokenizer_pb2.EncodeRequest(sampling=strings))).sampling
            return EncodedPrompt(token_ids=prompt, system_tokens=0, encode_us=0), ids
        if prompt.HasField("chat") and not model.has_chat_template:
            raise InvalidRequest("the model has no chat template: use /v1/completions", field=call.prompt_field)
        request = tokenizer_pb2.EncodeRequest(max_tokens=model.max_model_len_tokens - 1, sampling=strings)
        request.MergeFrom(prompt)
        encoded = await self._ask_tokenizer(call, model, request)
        if not encoded.token_ids:
            raise InvalidRequest(f"{call.prompt_field} has no tokens", field=call.prompt_field)
        self._metrics.tokenize.observe(encoded.encode_us / 1e6)
        prompt_ids = EncodedPrompt(token_ids=encoded.token_ids, system_tokens=encoded.system_tokens, encode_us=encoded.encode_us)
        return prompt_ids, encoded.sampling

    async def _ask_tokenizer(self, call: Call, model: ServedModel, request: tokenizer_pb2.EncodeRequest) -> tokenizer_pb2.EncodeResponse:
        try:
            return await self._fleet.encode(request)
        except InvalidRequest as error:
            said = in_clients_words(error, call.prompt_field)
            raise (in_openais_words(said, model) if isinstance(said, PromptTooLong) else said) from error

    def _choices(self, call: Call, model: ServedModel, prompts: Sequence[EncodedPrompt], ids: tokenizer_pb2.SamplingIds) -> list[Choice]:
        sampling = resolve_sampling(call.wishes, model, self._limits, ids)
        choices: list[Choice] = []
        for prompt_index, prompt in enumerate(prompts):
            # A client's seed gives each prompt the answer it would get alone; without one, equal prompts get answers of their own.
            seed = int.from_bytes(secrets.token_bytes()) if call.wishes.seed is None else call.wishes.seed
            stopping = resolve_stopping(
                call.wishes,
                model,
                self._limits,
                prompt_tokens=len(prompt.token_ids),
                prompt_field=call.prompt_field,
                default_max_tokens=call.default_max_tokens,
            )
            check_something_is_left(sampling, stopping, model)
            for number in range(call.n):
                own = type(sampling)()
                own.CopyFrom(sampling)
                own.seed = choice_seed(seed, number)
                choices.append(Choice(number=len(choices), prompt=prompt, prompt_index=prompt_index, sampling=own, stopping=stopping))
        return choices

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


class _Unobserved:
    """Implements `Observer` for what no client waits for."""

    def retried(self) -> None:
        """Nobody is told."""

    def gap(self, seconds: float) -> None:
        """Nobody is told."""


class _Record:
    """Counts and logs one call when it ends. Never sees a prompt."""

    def __init__(self, call: Call, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._call = call
        self._metrics = metrics
        self._clock = clock
        self._began_at = clock()
        self.generation: Generation | None = None
        # What it is when nothing else was noted: the handler was cancelled.
        self.outcome = "cancelled"

    def retried(self) -> None:
        """Counts an attempt after the first."""
        self._metrics.retries.labels("compute").inc()

    def gap(self, seconds: float) -> None:
        """Notes the time between two deltas."""
        self._metrics.inter_token_latency.observe(seconds)

    def close(self) -> None:
        """Counts and logs."""
        metrics, call, generation = self._metrics, self._call, self.generation
        took_s = self._clock() - self._began_at
        metrics.requests.labels(call.route, self.outcome).inc()
        metrics.duration.observe(took_s)
        if generation is None:
            logger.info("%s %s %s%s %s after %.3f s", call.request_id, call.tenant, call.route, call.label, self.outcome, took_s)
            return
        usage = generation.usage()
        metrics.cache_lookups.labels(generation.cache.status).inc()
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.completion_tokens.inc(usage.completion_tokens)
        metrics.cached_tokens.inc(usage.cached_tokens)
        if isinstance(generation, LiveGeneration):
            self._observe(generation)
        logger.info(
            "%s %s %s%s %s after %.3f s: %d prompt tokens, %d cached, %d generated, cache %s",
            call.request_id,
            call.tenant,
            call.route,
            call.label,
            self.outcome,
            took_s,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            generation.cache.status,
        )

    def _observe(self, generation: LiveGeneration) -> None:
        for answer in generation.answers:
            if answer.finish_reason is not None:
                self._metrics.answers.labels(answer.finish_reason).inc()
            if not answer.blank:
                self._metrics.time_to_first_token.observe(answer.first_at - self._began_at)
            if answer.started is not None:
                self._metrics.queue.observe(answer.started.queue_us / 1e6)
                self._metrics.prefill.observe(answer.started.prefill_us / 1e6)


def in_clients_words(error: InvalidRequest, prompt_field: str) -> InvalidRequest:
    """A tokenizer's refusal, with the field as the gateway's clients call it."""
    field = {"template_arguments": "chat_template_kwargs", "token_ids": "tokens", "prompt": prompt_field, "messages": prompt_field}.get(
        error.field, error.field or prompt_field
    )
    message = error.message
    if error.field and message.startswith(error.field):
        message = field + message.removeprefix(error.field)
    return type(error)(message, field=field)


def remaining_ms(deadline_s: float | None, now_s: float) -> int:
    """Milliseconds until a deadline, at least 1: 0 would mean none."""
    assert deadline_s is not None, "every call has a deadline"
    return max(1, round((deadline_s - now_s) * 1000))
