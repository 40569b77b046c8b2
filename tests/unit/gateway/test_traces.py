"""Who is traced: a share of those who do not say, and of those who do no more than a rate."""

from __future__ import annotations

import pytest

from gateway.traces import RequestTraces
from tests.fakes.recorded_spans import RecordedSpans
from triserve.rpc.traces.context import SpanContext

CALLER = SpanContext.root()
YES, NO = CALLER.traceparent, CALLER.traceparent[:-1] + "0"
ID = "0123456789abcdef" * 2


class Door:
    """A gateway's decision, with a clock and draws of its own."""

    def __init__(self, *, ratio: float = 0.0, limit: float = 1.0, draw: float = 0.5) -> None:
        self.recorded = RecordedSpans()
        self.traces = RequestTraces(self.recorded.tracer, ratio=ratio, client_limit_per_s=limit, draw=lambda: draw)

    def traced(self, *said: str) -> bool:
        return self.traces.begin("POST /x", request_id=ID, traceparents=said) is not None


@pytest.mark.parametrize(("ratio", "draw", "traced"), [(0.0, 0.0, False), (1.0, 0.999, True), (0.25, 0.2, True), (0.25, 0.25, False)])
def test_a_share_of_those_who_do_not_say_is_traced(ratio: float, draw: float, traced: bool) -> None:
    assert Door(ratio=ratio, draw=draw).traced() is traced


def test_a_client_that_says_no_is_not_traced_whatever_the_share() -> None:
    assert not Door(ratio=1.0).traced(NO)


def test_clients_that_say_yes_are_traced_up_to_a_rate_and_count_as_all_others_beyond() -> None:
    door = Door(limit=2.0)
    assert [door.traced(YES) for _ in range(4)] == [True, True, False, False]
    door.recorded.now += 0.5
    assert [door.traced(YES) for _ in range(2)] == [True, False]
    door.recorded.now += 3600.0
    assert [door.traced(YES) for _ in range(4)] == [True, True, False, False]
    lucky = Door(ratio=1.0, limit=0.0)
    assert [lucky.traced(YES) for _ in range(2)] == [True, True]


def test_at_a_limit_of_0_no_client_has_itself_traced() -> None:
    door = Door(limit=0.0)
    door.recorded.now += 3600.0
    assert not door.traced(YES)


def test_a_slow_rate_lets_one_through_when_it_is_due() -> None:
    door = Door(limit=0.1)
    assert [door.traced(YES), door.traced(YES)] == [True, False]
    door.recorded.now += 10.0
    assert door.traced(YES)


def test_a_trace_goes_on_from_the_client_and_its_log_lines_know_it() -> None:
    door = Door()
    span = door.traces.begin("POST /x", request_id=ID, traceparents=[YES])
    assert span is not None
    span.end()
    (one,) = door.recorded.spans
    assert (one.context.trace_id, one.parent_id, one.kind) == (CALLER.trace_id, CALLER.span_id, "server")
    assert one.attributes == {"triserve.request_id": ID}
    assert door.recorded.tracer.trace_id_of(ID) == CALLER.trace_id


@pytest.mark.parametrize("said", [["nonsense"], [YES, YES], [YES + "0"]])
def test_what_is_malformed_or_said_twice_is_as_if_nothing_were_said(said: list[str]) -> None:
    assert not Door(ratio=0.0).traced(*said)
    door = Door(ratio=1.0)
    span = door.traces.begin("POST /x", request_id=ID, traceparents=said)
    assert span is not None and span.context.trace_id != CALLER.trace_id
    span.end()
    assert door.recorded.spans[0].parent_id is None
