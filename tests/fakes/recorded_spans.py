"""A tracer with a clock that a test sets, and what it has recorded."""

from __future__ import annotations

import time
from collections.abc import Callable

from triserve.rpc.traces.spans import Span, Tracer


class RecordedSpans:
    """Spans in the order in which they ended.

    Args:
        clock: Seconds; None = `now`, which the test sets.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.now = 10.0
        self.spans: list[Span] = []
        self.tracer = Tracer(self.spans.append, clock or (lambda: self.now))

    @classmethod
    def in_real_time(cls) -> RecordedSpans:
        """Of a process that serves."""
        return cls(time.monotonic)

    @property
    def names(self) -> list[str]:
        """Of all spans."""
        return [span.name for span in self.spans]

    def named(self, name: str) -> list[Span]:
        """Spans of one kind."""
        return [span for span in self.spans if span.name == name]

    def the(self, name: str) -> Span:
        """The one span of a kind."""
        (span,) = self.named(name)
        return span
