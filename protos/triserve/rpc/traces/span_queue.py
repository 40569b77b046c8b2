"""A queue on which spans wait for an exporter. Nobody who puts one there ever waits."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from triserve.rpc.traces.spans import Span

logger = logging.getLogger(__name__)

# Spans that wait, some hundred bytes each.
_MAX_WAITING = 8192
# Encoding them holds the interpreter, 30 microseconds for each: few enough that the event loop does not wait for it as long as it may be made to.
_BATCH = 64
_INTERVAL_S = 1.0


class Exporter(Protocol):
    """Gives spans to a collector. Called in a thread of its own, where it may wait."""

    def export(self, spans: Sequence[Span]) -> bool:
        """Whether the collector took them. Ends within seconds."""

    def close(self) -> None:
        """Gives up what is under way; called in another thread."""


class SpanQueue:
    """Holds spans until the exporter takes them, as many as it may; those beyond, and those that no collector takes, are dropped and counted.

    Args:
        exporter: where they go.
        max_waiting: most spans that wait or are under way.
        batch: most spans that go out together.
        interval_s: how long a span waits for others.
    """

    def __init__(
        self, exporter: Exporter, *, max_waiting: int = _MAX_WAITING, batch: int = _BATCH, interval_s: float = _INTERVAL_S
    ) -> None:
        self._exporter = exporter
        self._max_waiting = max_waiting
        self._batch = batch
        self._interval_s = interval_s
        self._waiting: deque[Span] = deque()
        self._under_way = 0
        self._closing = False
        self._is_failing = False
        self._changed = threading.Condition()
        self.exported = 0
        # Because there was no room, and because the collector did not take them.
        self.overflowed = 0
        self.refused = 0
        # A daemon, because an exporter that hangs must not hold the process.
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def put(self, span: Span) -> None:
        """Takes a span, from any thread."""
        with self._changed:
            if self._closing or len(self._waiting) + self._under_way >= self._max_waiting:
                self.overflowed += 1
                return
            self._waiting.append(span)
            if len(self._waiting) == self._batch:
                self._changed.notify()

    def close(self, timeout_s: float) -> None:
        """Gives what waits to the exporter, for at most so many seconds; what is left then is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        left = len(self._waiting) + self._under_way
        self._exporter.close()
        if left:
            logger.warning("%d spans were not exported", left)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or len(self._waiting) >= self._batch, self._interval_s)
                spans = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch))]
                self._under_way = len(spans)
            if spans:
                self._export(spans)
            if self._closing and (self._is_failing or not self._waiting):
                return

    def _export(self, spans: Sequence[Span]) -> None:
        fault: Exception | None = None
        try:
            taken = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - whatever an exporter runs into, requests go on, and so do the spans after these
            taken, fault = False, error
        with self._changed:
            self._under_way = 0
            if taken:
                self.exported += len(spans)
            else:
                self.refused += len(spans)
        if taken == self._is_failing:
            self._is_failing = not taken
            if taken:
                logger.info("the collector takes spans again")
            else:
                logger.warning("the collector does not take spans: they are dropped and counted until it does", exc_info=fault)


class SpanCollector(Collector):
    """Tells Prometheus what became of spans.

    Args:
        queue: of the process.
    """

    def __init__(self, queue: SpanQueue) -> None:
        self._queue = queue

    def collect(self) -> Iterable[Metric]:
        """The counters as they are."""
        yield CounterMetricFamily("triserve_spans_exported", "Spans that the collector took", value=self._queue.exported)
        dropped = CounterMetricFamily("triserve_spans_dropped", "Spans that were dropped", labels=("reason",))
        dropped.add_metric(("overflow",), self._queue.overflowed)
        dropped.add_metric(("refused",), self._queue.refused)
        yield dropped
