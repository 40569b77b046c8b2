"""A request that is traced leaves one span in its sampler, from its opening to its end."""

from __future__ import annotations

from typing import Any

import pytest

from sampler_svc.request_slots import RequestSlots
from sampler_svc.session import Audits, Session
from tests.fakes.recorded_spans import RecordedSpans
from tests.unit.sampler_svc.test_session import EOS, VOCABULARY, WIDTH, frame, opening, texts
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.traces.context import SpanContext
from triserve.v1 import sampler_pb2


def traced(recorded: RecordedSpans, *openings: sampler_pb2.OpenRequest) -> Session:
    stream = Session(VOCABULARY, WIDTH, RequestSlots(100), Audits(), recorded.tracer)
    stream.process([frame(opens=openings)])
    return stream


def traced_opening(request: int, caller: SpanContext, **fields: Any) -> sampler_pb2.OpenRequest:
    made = opening(request, **fields)
    made.traceparent = caller.traceparent
    return made


def test_a_request_that_is_traced_leaves_one_span_from_its_opening_to_its_end_and_others_none() -> None:
    recorded, caller = RecordedSpans(), SpanContext.root()
    stream = traced(recorded, traced_opening(1, caller, max_tokens=2), opening(2))
    recorded.now = 12.0
    stream.process([frame([(1, 0, ord("a")), (2, 0, EOS)]), frame([(1, 1, ord("b"))])])
    span = recorded.the("sample")
    assert (span.context.trace_id, span.parent_id, span.kind, span.error) == (caller.trace_id, caller.span_id, "server", None)
    assert (span.began_at, span.ended_at) == (10.0, 12.0)
    assert span.attributes == {
        "triserve.request_id": "r-1",
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ("length",),
    }
    assert recorded.tracer.trace_id_of("r-1") == caller.trace_id


def test_a_span_ends_however_its_request_does() -> None:
    recorded, caller = RecordedSpans(), SpanContext.root()
    stream = traced(recorded, *(traced_opening(number, caller) for number in (1, 2, 3)))
    stream.process([frame([(2, 5, ord("a"))], closes=[1])])
    stream.close()
    stream.close()
    assert [span.error for span in recorded.spans] == ["cancelled", "internal", "cancelled"]


@pytest.mark.parametrize("with_tracer", [False, True])
def test_a_malformed_traceparent_fails_its_request_alone(with_tracer: bool) -> None:
    tracer = RecordedSpans().tracer if with_tracer else None
    bad = opening(1)
    bad.traceparent = "00-nonsense"
    stream = Session(VOCABULARY, WIDTH, RequestSlots(100), Audits(), tracer)
    outcome = stream.process([frame([(2, 0, ord("x"))], opens=[bad, opening(2)])])
    ((failed, error),) = outcome.failed
    assert (failed, type(error), error.field) == (1, InvalidRequest, "traceparent")
    assert texts(outcome) == {2: "x"} and stream.num_requests == 1
