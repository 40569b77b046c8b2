"""What is counted and logged of a call."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gateway.flow.call import Call
from gateway.flow.call_span import describe
from gateway.flow.generations.generation import Generation
from gateway.flow.generations.live_generation import LiveGeneration
from gateway.flow.generations.system2_attention import RewrittenGeneration
from gateway.flow.search.search_generation import SearchGeneration
from gateway.metrics import Metrics
from triserve.rpc.errors import ServiceError

logger = logging.getLogger(__name__)

# HTTP statuses from here on are no fault of a client's.
_FAULTS = 500


class Unobserved:
    """Implements `Observer` for what no client waits for."""

    def retried(self) -> None:
        """Nobody is told."""

    def gap(self, seconds: float) -> None:
        """Nobody is told."""


class Record:
    """Counts and logs one call when it ends. Never sees a prompt."""

    def __init__(self, call: Call, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._call = call
        self._metrics = metrics
        self._clock = clock
        self._began_at = clock()
        self.generation: Generation | None = None
        self._read_since = 0.0
        # What it is when nothing else was noted: the handler was cancelled.
        self.outcome = "cancelled"
        # Whether it ended so by a fault that is not its client's.
        self.is_fault = False

    def begin(self, generation: Generation) -> None:
        """From now on the generation is read."""
        self.generation = generation
        self._read_since = self._clock()

    def fail(self, error: ServiceError) -> None:
        """Notes how the call ends."""
        self.outcome = error.reason.lower()
        self.is_fault = error.http_status >= _FAULTS

    def retried(self) -> None:
        """Counts an attempt after the first."""
        self._metrics.retries.labels("compute").inc()

    def gap(self, seconds: float) -> None:
        """Notes the time between two deltas."""
        self._metrics.inter_token_latency.observe(seconds)

    def looked(self, seconds: float, *, found: bool) -> None:
        """Notes what asking the prompt cache took."""
        self._metrics.cache_lookup.labels("hit" if found else "miss").observe(seconds)
        if self._call.span is not None:
            now = self._clock()
            self._call.span.record("cache", now - seconds, now, attributes={"triserve.cache.found": found})

    def close(self) -> None:
        """Counts and logs, and lets go of the generation, whose observer it is: a cycle would wait for the garbage collector."""
        metrics, call, generation = self._metrics, self._call, self.generation
        self.generation = None
        took_s = self._clock() - self._began_at
        metrics.requests.labels(call.route, self.outcome).inc()
        metrics.duration.observe(took_s)
        if call.span is not None:
            describe(call.span, call, generation, read_since=self._read_since, outcome=self.outcome, is_fault=self.is_fault)
        if generation is None:
            logger.info("%s %s %s%s %s after %.3f s", call.request_id, call.tenant, call.route, call.label, self.outcome, took_s)
            return
        usage = generation.usage()
        metrics.cache_lookups.labels(generation.cache.status).inc()
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.completion_tokens.inc(usage.completion_tokens)
        if generation.cache.age_s is None:
            metrics.cached_tokens.inc(usage.cached_tokens)
            self._observe(generation.answer if isinstance(generation, RewrittenGeneration) else generation)
        else:
            metrics.saved_tokens.labels(generation.cache.status).inc(usage.completion_tokens)
            metrics.saved_seconds.inc(generation.saved_s)
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

    def _observe(self, generation: Generation | None) -> None:
        if isinstance(generation, SearchGeneration):
            self._metrics.search_requests.labels(generation.kind).inc(generation.num_requests)
            for found in generation.answers:
                self._metrics.answers.labels(found.finish_reason).inc()
        if not isinstance(generation, LiveGeneration):
            return
        for answer in generation.answers:
            if answer.finish_reason is not None:
                self._metrics.answers.labels(answer.finish_reason).inc()
            if not answer.blank:
                self._metrics.time_to_first_token.observe(answer.first_at - self._began_at)
            if answer.started is not None:
                self._metrics.queue.observe(answer.started.queue_us / 1e6)
                self._metrics.prefill.observe(answer.started.prefill_us / 1e6)
