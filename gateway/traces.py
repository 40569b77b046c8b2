"""Which requests are traced, and how their traces begin."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from triserve.rpc.traces.context import Traceparent, parse_traceparent
from triserve.rpc.traces.spans import OpenSpan, Tracer


class RequestTraces:
    """Begins traces. A client that says no is not traced; those that say yes are, up to a rate, so that no client decides what all are to cost.

    Args:
        tracer: records spans.
        ratio: share of the other requests that are traced.
        client_limit_per_s: most requests a second that are traced because their clients say so; saved up for a second.
        draw: a number in [0, 1).
    """

    def __init__(self, tracer: Tracer, *, ratio: float, client_limit_per_s: float, draw: Callable[[], float] = random.random) -> None:
        self._tracer = tracer
        self._ratio = ratio
        self._limit_per_s = client_limit_per_s
        self._draw = draw
        # Whole ones are requests that clients may still have traced.
        self._most = max(1.0, client_limit_per_s) if client_limit_per_s else 0.0
        self._left = self._most
        self._counted_at = tracer.clock()

    def begin(self, name: str, *, request_id: str, traceparents: Sequence[str]) -> OpenSpan | None:
        """The first span of ours; None if the request is not traced.

        Args:
            name: of the span.
            request_id: whose lines of the log belong to the trace.
            traceparents: as the client sent them. None, several, or one that is malformed: it says nothing, and a new trace begins.
        """
        said = parse_traceparent(traceparents[0]) if len(traceparents) == 1 else None
        if not self._is_traced(said):
            return None
        span = self._tracer.begin(name, said.context if said is not None else None, kind="server")
        span.attributes["triserve.request_id"] = request_id
        self._tracer.note(request_id, span.context)
        return span

    def _is_traced(self, said: Traceparent | None) -> bool:
        if said is not None and not said.is_sampled:
            return False
        return (said is not None and self._take()) or self._draw() < self._ratio

    def _take(self) -> bool:
        """Whether one more may be traced because its client says so."""
        now = self._tracer.clock()
        self._left = min(self._most, self._left + (now - self._counted_at) * self._limit_per_s)
        self._counted_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
