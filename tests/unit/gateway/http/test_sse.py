"""Hand-built events are what `json.dumps` of OpenAI's bodies would be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.generations.answer import Delta, FinishReason
from gateway.flow.generations.generation import CacheReport, Piece, Timeline, Usage
from gateway.flow.generations.replay import ReplayedGeneration
from gateway.http.openai.answer import Look
from gateway.http.sse import DONE, ChatEvents, CompletionEvents, error_event
from prompt_cache import CachedAnswer, CachedDelta
from triserve.rpc.errors import Overloaded
from triserve.v1 import sampler_pb2

GENERATION = ReplayedGeneration(
    CachedAnswer(deltas=(CachedDelta("a", (1, 2)),), finish_reason="stop", prompt_tokens=5, created_at=0),
    [7, 8],
    cache=CacheReport("hit-exact", 0),
)
NOTHING = Timeline(0, 0, 0, 0)


def form(kind: type[Any], **arguments: Any) -> Any:
    plain = {
        "request_id": "x-1",
        "created": 17,
        "model": 'a "model"',
        "system_fingerprint": "fp_1",
        "include_usage": False,
        "continuous_usage": False,
    }
    return kind(**{**plain, "look": Look(), "timeline": False, **arguments})


def events(data: bytes) -> list[Any]:
    """Reads events strictly: ASCII lines of `data: JSON`, each followed by an empty line."""
    text = data.decode("ascii")
    assert text.endswith("\n\n") or not text
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]


def piece(text: str, tokens: list[int] | None = None, finish: FinishReason | None = None, logprobs: Any = (), choice: int = 0) -> Piece:
    return Piece(choice, Delta(text, [1] if tokens is None else tokens, list(logprobs), finish))


@given(st.text(), st.sampled_from([None, "stop", "length"]), st.booleans(), st.booleans(), st.integers(0, 3))
def test_any_text_arrives_as_it_is_in_a_chat(text: str, finish: FinishReason | None, ids: bool, usage: bool, choice: int) -> None:
    chat = form(ChatEvents, look=Look(token_ids=ids), include_usage=usage)
    first, *rest = events(chat.pieces([piece(text, [4, 5], finish, choice=choice)], GENERATION))
    head = {"id": "x-1", "object": "chat.completion.chunk", "created": 17, "model": 'a "model"', "system_fingerprint": "fp_1"}
    tail = {"usage": None} if usage else {}
    prompt = {"prompt_token_ids": [7, 8]} if ids else {}
    assert first == {
        **head,
        "choices": [{"index": choice, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
        **prompt,
        **tail,
    }
    if not (text or finish or ids):
        assert not rest
        return
    own = {"index": choice, "delta": {"content": text} if text else {}, "finish_reason": finish}
    assert rest == [{**head, "choices": [{**own, "token_ids": [4, 5]} if ids else own], **tail}]


@given(st.text(min_size=1))
def test_any_text_arrives_as_it_is_in_a_completion(text: str) -> None:
    (event,) = events(form(CompletionEvents).pieces([piece(text)], GENERATION))
    assert event["object"] == "text_completion"
    assert event["choices"] == [{"index": 0, "text": text, "finish_reason": None}]


def test_each_choice_begins_with_its_role_once() -> None:
    chat = form(ChatEvents)
    seen = events(chat.pieces([piece("a"), piece("b", choice=1)], GENERATION)) + events(chat.pieces([piece("c")], GENERATION))
    assert [(one["choices"][0]["index"], one["choices"][0]["delta"]) for one in seen] == [
        (0, {"role": "assistant", "content": ""}),
        (0, {"content": "a"}),
        (1, {"role": "assistant", "content": ""}),
        (1, {"content": "b"}),
        (0, {"content": "c"}),
    ]


def test_a_piece_that_shows_nothing_makes_no_event() -> None:
    assert form(CompletionEvents).pieces([piece("")], GENERATION) == b""
    assert form(CompletionEvents, look=Look(token_ids=True)).pieces([piece("")], GENERATION)
    assert form(CompletionEvents).pieces([piece("", [], "stop")], GENERATION)


def test_usage_comes_last_where_it_is_asked_for_and_before_done() -> None:
    assert form(ChatEvents).last(Usage(3, 4, 2), NOTHING) == DONE
    data = form(ChatEvents, include_usage=True).last(Usage(3, 4, 2), NOTHING)
    assert data.endswith(DONE)
    (event,) = events(data.removesuffix(DONE))
    assert event["choices"] == []
    assert event["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}


def test_the_timeline_comes_last_where_it_is_asked_for() -> None:
    (event,) = events(form(ChatEvents, timeline=True).last(Usage(1, 1, 0), Timeline(1.23456, 2, 3, 4)).removesuffix(DONE))
    assert event["triserve"] == {"tokenize_ms": 1.235, "queue_ms": 2, "prefill_ms": 3, "decode_ms": 4}
    assert "usage" not in event


def test_continuous_usage_counts_the_tokens_of_the_events_so_far() -> None:
    for kind, counts in ((ChatEvents, [0, 1, 1, 3, 4]), (CompletionEvents, [1, 3, 4])):
        made = form(kind, continuous_usage=True, include_usage=True)
        seen = events(made.pieces([piece("a"), piece("b", [2, 3], choice=1)], GENERATION)) + events(made.pieces([piece("c")], GENERATION))
        assert [event["usage"]["completion_tokens"] for event in seen] == counts
        assert {event["usage"]["prompt_tokens"] for event in seen} == {2}


def test_the_first_event_of_each_choice_has_the_ids_of_its_prompt() -> None:
    made = form(CompletionEvents, look=Look(token_ids=True))
    seen = events(made.pieces([piece("a"), piece("b", choice=1), piece("c")], GENERATION))
    assert [event["choices"][0].get("prompt_token_ids") for event in seen] == [[7, 8], [7, 8], None]


def test_log_probabilities_of_an_event_keep_their_places_in_the_text() -> None:
    one = sampler_pb2.TokenLogprobs(token=7, token_bytes=b"ab", text="ab", text_offset=5, logprob=-0.5)
    (event,) = events(form(CompletionEvents).pieces([piece("?", logprobs=[one])], GENERATION))
    assert event["choices"][0]["logprobs"] == {
        "tokens": ["ab"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"ab": -0.5}],
        "text_offset": [5],
    }


@pytest.mark.parametrize("message", ["full", 'with "quotes" and é'])
def test_an_error_event_is_openais_body(message: str) -> None:
    (event,) = events(error_event(Overloaded(message, field="n")))
    assert event == {"error": {"message": message, "type": "rate_limit_error", "param": "n", "code": "overloaded"}}
