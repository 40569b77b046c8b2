"""Streams of other servers are read for what they tell; one that tells nothing is a failure with a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.cli.measuring.any_server import WORDS, chat_body, read_times
from gateway.cli.measuring.http_transcript import Piece
from gateway.cli.measuring.measurement import Failed, Measured, Outcome, measure
from gateway.cli.measuring.workload import PlannedRequest

REQUEST = PlannedRequest(index=0, arrival_s=0.0, prompt_token_ids=[0, 1, 2], output_tokens=8)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}


def delta(finish_reason: str | None = None, **fields: str) -> dict[str, Any]:
    return {"choices": [{"delta": fields, "finish_reason": finish_reason}]}


def read(*events: object, done: bool = True) -> Outcome:
    """One event each second, from second 10."""
    pieces = [Piece(9.0, HEAD)]
    pieces += [Piece(10.0 + number, b"data: " + json.dumps(event).encode() + b"\n\n") for number, event in enumerate(events)]
    return measure(REQUEST, 8.0, [*pieces, Piece(99.0, b"data: [DONE]\n\n")] if done else pieces, read_times)


@pytest.mark.parametrize("done", [True, False])
def test_tokens_are_those_of_usage_and_times_those_of_text(done: bool) -> None:
    outcome = read(delta(role="assistant"), delta(content="a"), delta(reasoning_content="b"), delta("stop", content="c"), USAGE, done=done)
    assert isinstance(outcome, Measured)
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.is_counted) == (9, 5, True)
    assert (outcome.ttft_s, outcome.e2e_s, outcome.tpot_s) == (3.0, 5.0, 0.5)
    assert outcome.delta_tokens == (1, 1, 3)


def test_more_pieces_than_tokens_are_no_more_tokens() -> None:
    outcome = read(*[delta(content="a")] * 7, delta("stop"), USAGE)
    assert isinstance(outcome, Measured)
    assert (outcome.output_tokens, len(outcome.delta_tokens)) == (5, 7)


@pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {"prompt_tokens": "9"}}])
def test_without_usage_each_piece_counts_as_a_token_and_the_prompt_is_not_known(usage: dict[str, Any]) -> None:
    outcome = read(delta(content="a"), delta("length", content="b"), {"choices": [], **usage})
    assert isinstance(outcome, Measured)
    assert (outcome.prompt_tokens, outcome.output_tokens, outcome.is_counted) == (None, 2, False)


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([], "the answer is no stream of events"),
        ([delta(content="a")], "the stream ended without a finish reason"),
        ([delta("stop")], "the answer has no text"),
        ([{"choices": None}, delta("stop", content="")], "the answer has no text"),
        ([delta(content="a"), {"error": {"message": "no memory"}}], "the stream ended in an error: no memory"),
        ([delta(content="a"), [1]], "an event is no JSON object"),
    ],
)
def test_a_stream_that_tells_nothing_has_failed_with_a_reason(events: list[object], reason: str) -> None:
    assert read(*events, done=False) == Failed(REQUEST, reason)


def test_a_prompt_has_as_many_words_as_it_has_ids() -> None:
    assert chat_body("m", REQUEST)["messages"][0]["content"] == " ".join(WORDS[:3])
    assert len(set(WORDS)) == len(WORDS)
