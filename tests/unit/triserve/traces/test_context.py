"""A traceparent is read as W3C Trace Context level 1 has it, and what is malformed says nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.traces.context import TRACEPARENT_CHARS, SpanContext, Traceparent, parse_traceparent, read_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("text", "is_sampled"),
    [
        (GOOD, True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-fe", False),
        (f"00-{TRACE}-{SPAN}-ff", True),
        # Versions to come keep these fields, and may add others.
        (f"01-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True),
    ],
)
def test_what_is_well_formed_is_read(text: str, is_sampled: bool) -> None:
    assert parse_traceparent(text) == Traceparent(SpanContext(TRACE, SPAN), is_sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        GOOD.upper(),
        GOOD + "-",
        GOOD + "-00",
        GOOD + "\n",
        " " + GOOD,
        GOOD[:-1],
        GOOD + "1",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE}-{SPAN[:-1]}\u0661-01",
        f"00_{TRACE}_{SPAN}_01",
    ],
)
def test_what_is_malformed_says_nothing_to_a_door_and_is_refused_by_a_stage(text: str) -> None:
    assert parse_traceparent(text) is None
    if text:
        with pytest.raises(InvalidRequest, match="traceparent") as refused:
            read_traceparent(text)
        assert refused.value.field == "traceparent"


@given(st.text(alphabet="0123456789abcdef-fF", max_size=60))
@examples(200)
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    parsed = parse_traceparent(text)
    assert parsed is None or text[3:35] == parsed.context.trace_id


def test_a_stage_is_told_of_no_trace_of_one_that_is_not_recorded_and_of_one_that_is() -> None:
    assert read_traceparent("") is None
    assert read_traceparent(f"00-{TRACE}-{SPAN}-00") is None
    assert read_traceparent(GOOD) == SpanContext(TRACE, SPAN)
    with pytest.raises(InvalidRequest, match=f"has 60 characters, the limit is {TRACEPARENT_CHARS}"):
        read_traceparent(f"cc-{TRACE}-{SPAN}-01-more")


def test_what_is_written_is_what_is_read_and_a_child_is_of_the_same_trace() -> None:
    root = SpanContext.root()
    child = root.child()
    assert len(root.traceparent) == TRACEPARENT_CHARS
    assert read_traceparent(root.traceparent) == root
    assert child.trace_id == root.trace_id and child.span_id != root.span_id
