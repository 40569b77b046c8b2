"""Whatever a collector does, who records a span goes on at once; what is not exported is counted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import pytest
from prometheus_client import CollectorRegistry

from triserve.rpc.traces.context import SpanContext
from triserve.rpc.traces.span_queue import SpanCollector, SpanQueue
from triserve.rpc.traces.spans import Span

PATIENCE_S = 30.0


def span(name: str = "x") -> Span:
    return Span(name, SpanContext.root(), None, False, "internal", 0.0, 1.0, {}, None)


class FakeExporter:
    """Takes, refuses, or hangs until it is closed."""

    def __init__(self, answer: Callable[[], bool] = lambda: True, *, hangs: bool = False) -> None:
        self.batches: list[list[str]] = []
        self.called = threading.Event()
        self.closed = threading.Event()
        self._answer = answer
        self._hangs = hangs

    def export(self, spans: Sequence[Span]) -> bool:
        self.batches.append([one.name for one in spans])
        self.called.set()
        if self._hangs:
            assert self.closed.wait(PATIENCE_S)
            return False
        return self._answer()

    def close(self) -> None:
        self.closed.set()


def test_spans_are_exported_in_order_and_in_batches() -> None:
    exporter = FakeExporter()
    queue = SpanQueue(exporter, batch=2, interval_s=PATIENCE_S)
    for name in ("a", "b", "c"):
        queue.put(span(name))
    queue.close(PATIENCE_S)
    assert [name for batch in exporter.batches for name in batch] == ["a", "b", "c"]
    assert all(len(batch) <= 2 for batch in exporter.batches)
    assert (queue.exported, queue.refused, queue.overflowed) == (3, 0, 0)


def test_a_span_waits_for_others_no_longer_than_an_interval() -> None:
    exporter = FakeExporter()
    queue = SpanQueue(exporter, interval_s=0.001)
    queue.put(span())
    assert exporter.called.wait(PATIENCE_S)
    queue.close(PATIENCE_S)


def test_a_collector_that_hangs_holds_nobody_up_and_what_has_no_room_is_counted() -> None:
    exporter = FakeExporter(hangs=True)
    queue = SpanQueue(exporter, max_waiting=3, batch=1)
    queue.put(span("under way"))
    assert exporter.called.wait(PATIENCE_S)
    for _ in range(5):
        queue.put(span())
    assert (queue.overflowed, queue.exported) == (3, 0)
    queue.close(0.0)
    assert exporter.closed.is_set()
    queue.close(PATIENCE_S)


@pytest.mark.parametrize("fault", [False, True])
def test_what_a_collector_refuses_is_counted_and_told_once(caplog: pytest.LogCaptureFixture, fault: bool) -> None:
    answers = iter([False, False, True])
    answered = threading.Semaphore(0)

    def answer() -> bool:
        taken = next(answers)
        answered.release()
        if fault and not taken:
            raise RuntimeError("a fault of the exporter")
        return taken

    queue = SpanQueue(FakeExporter(answer), batch=1, interval_s=PATIENCE_S)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            queue.put(span())
            assert answered.acquire(timeout=PATIENCE_S)
        queue.close(PATIENCE_S)
    assert (queue.exported, queue.refused) == (1, 2)
    assert [record.message for record in caplog.records if "collector" in record.message] == [
        "the collector does not take spans: they are dropped and counted until it does",
        "the collector takes spans again",
    ]


def test_a_process_that_leaves_tries_a_collector_that_refuses_no_second_time() -> None:
    told_to_leave = threading.Event()
    exporter = FakeExporter(lambda: not told_to_leave.wait(PATIENCE_S))
    queue = SpanQueue(exporter, batch=1, max_waiting=1_000_000)
    for _ in range(3):
        queue.put(span())
    assert exporter.called.wait(PATIENCE_S)
    leaving = threading.Thread(target=queue.close, args=(PATIENCE_S,))
    leaving.start()
    # What leaves takes nothing new.
    while not queue.overflowed:
        queue.put(span())
    told_to_leave.set()
    leaving.join(PATIENCE_S)
    assert len(exporter.batches) == 1


def test_what_became_of_spans_is_told() -> None:
    queue = SpanQueue(FakeExporter(), interval_s=PATIENCE_S)
    queue.put(span())
    queue.close(PATIENCE_S)
    queue.put(span())
    registry = CollectorRegistry()
    registry.register(SpanCollector(queue))
    assert registry.get_sample_value("triserve_spans_exported_total") == 1
    assert registry.get_sample_value("triserve_spans_dropped_total", {"reason": "overflow"}) == 1
    assert registry.get_sample_value("triserve_spans_dropped_total", {"reason": "refused"}) == 0
