"""Spans begin, end once, and end what began under them."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.recorded_spans import RecordedSpans
from triserve.rpc.errors import Unavailable
from triserve.rpc.traces.context import SpanContext


def test_a_span_is_recorded_once_when_it_ends() -> None:
    recorded = RecordedSpans()
    span = recorded.tracer.begin("POST /x", None, kind="server")
    recorded.now = 12.5
    span.attributes["a"] = 1
    span.end()
    span.end()
    (one,) = recorded.spans
    assert (one.name, one.kind, one.began_at, one.ended_at, one.parent_id, one.error) == ("POST /x", "server", 10.0, 12.5, None, None)
    assert one.attributes == {"a": 1}


def test_the_first_span_here_is_under_its_callers() -> None:
    recorded, caller = RecordedSpans(), SpanContext.root()
    recorded.tracer.begin("encode", caller, kind="server").end()
    (one,) = recorded.spans
    assert one.context.trace_id == caller.trace_id and one.parent_id == caller.span_id and one.context.span_id != caller.span_id


def test_what_began_under_a_span_ends_with_it_and_only_if_it_has_not_ended() -> None:
    recorded = RecordedSpans()
    root = recorded.tracer.begin("root", None)
    done, open_one = root.child("done"), root.child("open", at=9.0)
    recorded.now = 11.0
    done.end()
    recorded.now = 13.0
    root.end()
    by_name = {span.name: span for span in recorded.spans}
    assert recorded.names == ["done", "open", "root"]
    assert (by_name["done"].ended_at, by_name["open"].began_at, by_name["open"].ended_at) == (11.0, 9.0, 13.0)
    assert by_name["open"].parent_id == root.context.span_id == by_name["root"].context.span_id
    open_one.end()
    assert len(recorded.spans) == 3


@pytest.mark.parametrize(
    ("error", "said"), [(Unavailable("gone"), "unavailable"), (asyncio.CancelledError(), "cancelled"), (ValueError("secret"), "ValueError")]
)
def test_a_failure_is_told_by_its_kind_and_never_by_its_words(error: BaseException, said: str) -> None:
    recorded = RecordedSpans()
    with pytest.raises(type(error)), recorded.tracer.begin("root", None):
        raise error
    assert (recorded.spans[0].error, recorded.spans[0].attributes) == (said, {"error.type": said})


def test_no_span_ends_before_it_begins() -> None:
    recorded = RecordedSpans()
    recorded.tracer.record("queue", SpanContext.root(), 5.0, 4.999, attributes={})
    assert recorded.spans[0].ended_at == 5.0


def test_a_requests_trace_is_known_by_its_id_under_every_prefix() -> None:
    tracer, context, digits = RecordedSpans().tracer, SpanContext.root(), "0123456789abcdef" * 2
    tracer.note(digits, context)
    assert tracer.trace_id_of(f"chatcmpl-{digits}") == tracer.trace_id_of(digits) == context.trace_id
    assert tracer.trace_id_of("f" * 32) is None


def test_of_many_requests_the_latest_are_known() -> None:
    tracer, context = RecordedSpans().tracer, SpanContext.root()
    for number in range(10_000):
        tracer.note(f"{number:032x}", context)
    assert tracer.trace_id_of(f"{0:032x}") is None
    assert tracer.trace_id_of(f"{9_999:032x}") == context.trace_id
