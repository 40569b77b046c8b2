"""Times are taken from deltas with tokens; an answer that is not the one asked for gives none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.cli.measuring.http_transcript import Piece
from gateway.cli.measuring.measurement import Failed, Measured, Wrong, measure
from gateway.cli.measuring.workload import PlannedRequest

REQUEST = PlannedRequest(index=0, arrival_s=0.0, prompt_token_ids=[1, 2], output_tokens=3)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
USAGE = {"prompt_tokens": 2, "completion_tokens": 3}


def delta(token_ids: list[int], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"text": "x", "token_ids": token_ids, "finish_reason": finish_reason}]}


def stream(*events: object, done: bool = True) -> list[Piece]:
    """One event each second, from second 10."""
    pieces = [Piece(9.0, HEAD)]
    pieces += [Piece(10.0 + number, b"data: " + json.dumps(event).encode() + b"\n\n") for number, event in enumerate(events)]
    return [*pieces, Piece(99.0, b"data: [DONE]\n\n")] if done else pieces


def test_times_are_those_of_deltas_with_tokens() -> None:
    outcome = measure(REQUEST, 8.0, stream(delta([]), delta([5]), delta([6, 7]), delta([], "length"), {"choices": [], "usage": USAGE}))
    assert isinstance(outcome, Measured)
    assert (outcome.ttft_s, outcome.e2e_s, outcome.tpot_s, outcome.itl_s) == (3.0, 4.0, 0.5, [1.0])


def test_an_answer_in_one_delta_has_no_time_per_later_token() -> None:
    outcome = measure(REQUEST, 8.0, stream(delta([5, 6, 7], "length"), {"choices": [], "usage": USAGE}))
    assert isinstance(outcome, Measured)
    assert (outcome.tpot_s, outcome.itl_s) == (None, [])


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        (stream(delta([5, 6], "length"), {"usage": USAGE}), "2 tokens came, 3 were asked for"),
        (stream(delta([5, 6, 7, 8], "length"), {"usage": USAGE}), "4 tokens came"),
        (stream({"usage": USAGE}), "0 tokens came"),
        (stream(delta([5, 6, 7], "stop"), {"usage": USAGE}), "finish reason is stop"),
        (stream(delta([5, 6, 7]), {"usage": USAGE}), "finish reason is None"),
        (stream(delta([5, 6, 7], "length")), "usage.prompt_tokens is None"),
        (stream(delta([5, 6, 7], "length"), {"usage": {**USAGE, "completion_tokens": 4}}), "usage.completion_tokens is 4"),
        (stream(delta([5, 6, 7], "length"), {"usage": USAGE}, done=False), "without [DONE]"),
    ],
)
def test_an_answer_that_is_not_the_one_asked_for_is_wrong(pieces: list[Piece], reason: str) -> None:
    outcome = measure(REQUEST, 8.0, pieces)
    assert isinstance(outcome, Wrong)
    assert reason in outcome.reason


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([Piece(9.0, b'HTTP/1.1 429 Too Many\r\n\r\n{"error": {"message": "full"}}')], "HTTP 429: full"),
        ([Piece(9.0, b"HTTP/1.1 502 Bad\r\n\r\nproxy")], "HTTP 502: proxy"),
        ([], "the connection ended without a response"),
        (stream(delta([5]), {"error": {"message": "compute is gone"}}), "the stream ended in an error: compute is gone"),
        (stream([1]), "an event is no JSON object"),
    ],
)
def test_a_request_without_an_answer_has_failed(pieces: list[Piece], reason: str) -> None:
    assert measure(REQUEST, 8.0, pieces) == Failed(REQUEST, reason)
