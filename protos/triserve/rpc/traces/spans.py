"""Spans as services make them. A request that is not traced has none: its span is None wherever one is looked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, TypeAlias

from triserve.rpc.errors import ServiceError
from triserve.rpc.traces.context import SpanContext

Kind: TypeAlias = Literal["internal", "server", "client"]
Value: TypeAlias = str | int | float | bool | Sequence[str]

# Requests whose lines of the log are known to belong to a trace: many more than are under way.
_MAX_NOTED = 8192
_ID_DIGITS = 32


class Span(NamedTuple):
    """A span that has ended."""

    name: str
    context: SpanContext
    # None = it is the first of its trace.
    parent_id: str | None
    # Whether its parent is a span of another process.
    is_entry: bool
    kind: Kind
    # Seconds on the monotonic clock.
    began_at: float
    ended_at: float
    attributes: Mapping[str, Value]
    # What went wrong, in a word; None = nothing.
    error: str | None


class Tracer:
    """Where a process records spans.

    Args:
        put: takes a span that has ended, at once and from any thread.
        clock: seconds, monotonic.

    Attributes:
        clock: the same.
    """

    def __init__(self, put: Callable[[Span], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._put = put
        self._trace_ids: dict[str, str] = {}

    def record(
        self,
        name: str,
        parent: SpanContext,
        began_at: float,
        ended_at: float,
        *,
        attributes: Mapping[str, Value],
        error: str | None = None,
        is_entry: bool = True,
    ) -> None:
        """A span that began and ended at these times, under another of a process before this one, unless said otherwise."""
        if error is not None:
            attributes = {**attributes, "error.type": error}
        self.put(Span(name, parent.child(), parent.span_id, is_entry, "internal", began_at, ended_at, attributes, error))

    def put(self, span: Span) -> None:
        """A span that has ended. Clocks are read in several places: what would end before it begins has no length."""
        self._put(span if span.ended_at >= span.began_at else span._replace(ended_at=span.began_at))

    def begin(self, name: str, parent: SpanContext | None, *, kind: Kind = "internal") -> OpenSpan:
        """Begins a span.

        Args:
            name: what is done, in words of which there are few.
            parent: the span under which it begins, of another process; None = it is the first of its trace.
            kind: whether it asks another process, answers one, or neither.
        """
        if parent is None:
            return OpenSpan(self, name, SpanContext.root(), None, kind=kind)
        return OpenSpan(self, name, parent.child(), parent.span_id, kind=kind, is_entry=True)

    def note(self, request_id: str, context: SpanContext) -> None:
        """Lines of the log that name this request belong to the trace."""
        self._trace_ids[_digits(request_id)] = context.trace_id
        if len(self._trace_ids) > _MAX_NOTED:
            del self._trace_ids[next(iter(self._trace_ids))]

    def trace_id_of(self, request_id: str) -> str | None:
        """The trace to which a request belongs that was noted; None = none."""
        return self._trace_ids.get(_digits(request_id))


class OpenSpan:
    """A span that has begun. It is recorded when it ends, and with it what began under it and has not ended.

    Args:
        tracer: records it.
        name: as in `Tracer.begin`.
        context: its own.
        parent_id: of the span under which it begins; None = none.
        kind: as in `Tracer.begin`.
        is_entry: as of `Span`.
        at: when it began; None = now.

    Attributes:
        context: the same.
        attributes: what is known of it.
        error: what went wrong, in a word; None = nothing.
    """

    __slots__ = (
        "_began_at",
        "_children",
        "_has_ended",
        "_is_entry",
        "_kind",
        "_name",
        "_parent_id",
        "_tracer",
        "attributes",
        "context",
        "error",
    )

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        context: SpanContext,
        parent_id: str | None,
        *,
        kind: Kind,
        is_entry: bool = False,
        at: float | None = None,
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._parent_id = parent_id
        self._kind: Kind = kind
        self._is_entry = is_entry
        self._began_at = tracer.clock() if at is None else at
        self._has_ended = False
        self._children: list[OpenSpan] = []
        self.context = context
        self.attributes: dict[str, Value] = {}
        self.error: str | None = None

    def child(self, name: str, *, kind: Kind = "internal", at: float | None = None) -> OpenSpan:
        """Begins a span under this one, now or at a time before."""
        span = OpenSpan(self._tracer, name, self.context.child(), self.context.span_id, kind=kind, at=at)
        self._children.append(span)
        return span

    def record(self, name: str, began_at: float, ended_at: float, *, attributes: Mapping[str, Value]) -> None:
        """A span under this one that began and ended at these times."""
        self._tracer.record(name, self.context, began_at, ended_at, attributes=attributes, is_entry=False)

    def end(self, *, at: float | None = None) -> None:
        """Records it, once, as having ended now or at that time."""
        if self._has_ended:
            return
        self._has_ended = True
        ended_at = self._tracer.clock() if at is None else at
        for span in self._children:
            span.end(at=ended_at)
        self._children.clear()
        attributes = self.attributes if self.error is None else {**self.attributes, "error.type": self.error}
        self._tracer.put(
            Span(self._name, self.context, self._parent_id, self._is_entry, self._kind, self._began_at, ended_at, attributes, self.error)
        )

    def __enter__(self) -> OpenSpan:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.error = error_type(error)
        self.end()


def error_type(error: BaseException) -> str:
    """What went wrong, in a word of which there are few."""
    if isinstance(error, ServiceError):
        return error.reason.lower()
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__


def _digits(request_id: str) -> str:
    """What is the same of a request's id under every prefix that it has."""
    return request_id[-_ID_DIGITS:]
