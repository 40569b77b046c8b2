"""The spans of one attempt at a request, made when it ends from the times that were noted on the way."""

from __future__ import annotations

from dataclasses import dataclass

from compute_svc.wire.step_output import Started
from triserve.rpc.errors import ServiceError
from triserve.rpc.traces.context import SpanContext
from triserve.rpc.traces.spans import Tracer, Value, error_type
from triserve.v1 import compute_pb2


@dataclass
class FlightSpans:
    """What a request that is traced leaves: `queue`, `prefill` and `decode`, as many of them as it gets to.

    Args:
        tracer: Records them.
        parent: The attempt, as its gateway knows it.
        request_id: Of the request.
        input_tokens: Of its prompt.
        submitted_at: Seconds, monotonic, as all times here.
    """

    tracer: Tracer
    parent: SpanContext
    request_id: str
    input_tokens: int
    submitted_at: float
    _started: Started | None = None
    _first_token_at: float = 0.0
    _admitted_at: float | None = None

    def admitted(self, at: float) -> None:
        """It has left the queue."""
        self._admitted_at = at

    def started(self, started: Started, at: float) -> None:
        """Its first token is computed."""
        self._started, self._first_token_at, self._admitted_at = started, at, started.admitted_at

    def ended(self, at: float, *, error: ServiceError | None, is_cancelled: bool, preemptions: int) -> None:
        """It has ended, and with it the span that it has got to."""
        wrong = "cancelled" if is_cancelled else None if error is None else error_type(error)
        if self._admitted_at is None:
            self._record("queue", self.submitted_at, at, {}, wrong)
            return
        self._record("queue", self.submitted_at, self._admitted_at, {})
        prompt: dict[str, Value] = {"gen_ai.usage.input_tokens": self.input_tokens}
        if self._started is None:
            self._record("prefill", self._admitted_at, at, prompt, wrong)
            return
        prompt["gen_ai.usage.cache_read.input_tokens"] = self._started.cached_tokens
        self._record("prefill", self._admitted_at, self._first_token_at, prompt)
        self._record("decode", self._first_token_at, at, {"triserve.preemptions": preemptions}, wrong)

    def _record(self, name: str, began_at: float, ended_at: float, attributes: dict[str, Value], error: str | None = None) -> None:
        known: dict[str, Value] = {"triserve.request_id": self.request_id, **attributes}
        self.tracer.record(name, self.parent, began_at, ended_at, attributes=known, error=error)


def open_spans(tracer: Tracer | None, context: SpanContext | None, message: compute_pb2.SubmitRequest, now: float) -> FlightSpans | None:
    """The spans of a request that is submitted now; None if it is not traced."""
    if tracer is None or context is None:
        return None
    tracer.note(message.request_id, context)
    return FlightSpans(tracer, context, message.request_id, len(message.token_ids), now)
