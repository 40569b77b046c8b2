"""What is counted and logged of a call."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gateway.flow.call import Call
from gateway.flow.generation import Generation, LiveGeneration
from gateway.metrics import Metrics

logger = logging.getLogger(__name__)


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
        # What it is when nothing else was noted: the handler was cancelled.
        self.outcome = "cancelled"

    def retried(self) -> None:
        """Counts an attempt after the first."""
        self._metrics.retries.labels("compute").inc()

    def gap(self, seconds: float) -> None:
        """Notes the time between two deltas."""
        self._metrics.inter_token_latency.observe(seconds)

    def looked(self, seconds: float, *, found: bool) -> None:
        """Notes what asking the prompt cache took."""
        self._metrics.cache_lookup.labels("hit" if found else "miss").observe(seconds)

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
        if isinstance(generation, LiveGeneration):
            metrics.cached_tokens.inc(usage.cached_tokens)
            self._observe(generation)
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

    def _observe(self, generation: LiveGeneration) -> None:
        for answer in generation.answers:
            if answer.finish_reason is not None:
                self._metrics.answers.labels(answer.finish_reason).inc()
            if not answer.blank:
                self._metrics.time_to_first_token.observe(answer.first_at - self._began_at)
            if answer.started is not None:
                self._metrics.queue.observe(answer.started.queue_us / 1e6)
                self._metrics.prefill.observe(answer.started.prefill_us / 1e6)
