"""What a request leaves in its trace: as many of queue, prefill and decode as it got to, and the last of them says how it ended."""

from __future__ import annotations

import pytest

from compute_svc.replica.sampler_ledger import Failed
from compute_svc.wire.step_output import Started
from tests.fakes.dispatch_desk import Desk
from tests.fakes.recorded_spans import RecordedSpans
from triserve.rpc.errors import Unavailable
from triserve.rpc.traces.context import SpanContext

CALLER = SpanContext.root()


class TracedDesk(Desk):
    """A dispatcher that records spans."""

    def __init__(self) -> None:
        self.recorded = RecordedSpans()
        super().__init__(tracer=self.recorded.tracer)

    def begun(self) -> int:
        """A request that waited from 100 to 102 and had its first token at 105."""
        number = self.admit(7, traceparent=CALLER.traceparent)
        self.now = 105.0
        self.output(started=[Started(number, 1, 100.0, 102.0)])
        return number

    @property
    def times(self) -> list[tuple[str, float, float, str | None]]:
        return [(span.name, span.began_at, span.ended_at, span.error) for span in self.recorded.spans]


def test_an_answer_that_ends_well_leaves_three_spans_side_by_side() -> None:
    desk = TracedDesk()
    number = desk.begun()
    desk.now = 109.0
    desk.answer(finished=[number])
    desk.free(number, preemptions=2)
    assert desk.times == [("queue", 100.0, 102.0, None), ("prefill", 102.0, 105.0, None), ("decode", 105.0, 109.0, None)]
    assert {(span.context.trace_id, span.parent_id) for span in desk.recorded.spans} == {(CALLER.trace_id, CALLER.span_id)}
    assert desk.recorded.the("prefill").attributes == {
        "triserve.request_id": "r7",
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 1,
    }
    assert desk.recorded.the("decode").attributes["triserve.preemptions"] == 2
    assert desk.link.opened == {} and desk.recorded.tracer.trace_id_of("r7") == CALLER.trace_id


def test_its_sampler_is_told_of_the_same_span_whether_or_not_compute_records_any() -> None:
    for desk in (Desk(), TracedDesk()):
        number = desk.admit(7, traceparent=CALLER.traceparent)
        assert desk.link.opened[number].traceparent == CALLER.traceparent


def test_what_fails_in_the_queue_leaves_the_queue_alone() -> None:
    desk = TracedDesk()
    number = desk.submit(7, traceparent=CALLER.traceparent)
    desk.now = 103.0
    desk.dispatcher.on_engine_refused(number, Unavailable("full"))
    assert desk.times == [("queue", 100.0, 103.0, "unavailable")]


def test_what_is_cancelled_before_its_first_token_leaves_a_prefill_that_says_so() -> None:
    desk = TracedDesk()
    number = desk.submit(7, traceparent=CALLER.traceparent)
    desk.now = 101.0
    desk.dispatcher.on_engine_admitted([number])
    desk.now = 104.0
    desk.dispatcher.cancel(desk.gateway, 7)
    desk.free(number)
    assert desk.times == [("queue", 100.0, 101.0, None), ("prefill", 101.0, 104.0, "cancelled")]


def test_what_loses_its_sampler_or_its_gateway_leaves_a_decode_that_says_so() -> None:
    desk = TracedDesk()
    number = desk.begun()
    desk.answer(failed=[Failed(number, Unavailable("lost"))])
    desk.free(number)
    assert desk.times[-1] == ("decode", 105.0, 105.0, "unavailable")
    desk = TracedDesk()
    number = desk.begun()
    desk.dispatcher.close_gateway(desk.gateway)
    desk.free(number)
    assert desk.times[-1] == ("decode", 105.0, 105.0, "cancelled")


@pytest.mark.parametrize("traceparent", ["", CALLER.traceparent[:-1] + "0"], ids=["none", "unsampled"])
def test_what_is_not_traced_leaves_nothing(traceparent: str) -> None:
    desk = TracedDesk()
    number = desk.admit(7, traceparent=traceparent)
    desk.answer(finished=[number])
    desk.free(number)
    assert not desk.recorded.spans


async def test_a_malformed_traceparent_is_refused_by_name_with_or_without_a_tracer() -> None:
    for desk in (Desk(), TracedDesk()):
        desk.submit(7, traceparent="00-" + "1" * 60)
        end = await desk.ended()
        assert (end.error.reason, end.error.field) == ("INVALID_REQUEST", "traceparent")
        assert not desk.engine.submitted
