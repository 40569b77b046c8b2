"""Calls, text and thoughts in the events of responses and messages: put together they are the whole answer, in whatever pieces it comes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.generations.answer import Delta, FinishReason
from gateway.flow.generations.generation import Piece, Timeline, Usage
from gateway.flow.limits import Limits
from gateway.http.answering import AnswerRenderer
from gateway.http.messages.answer import MessageRenderer
from gateway.http.messages.schema import MessagesBody, Turn
from gateway.http.openai.answer import WholeChoice
from gateway.http.openai.parsing import parse_body
from gateway.http.responses.answer import ResponseRenderer
from gateway.http.responses.schema import ResponsesBody
from gateway.tools.registry import REASONING
from tests.examples import examples
from tests.fakes.tool_answers import WRITERS, WrittenCall, calls, cut, form_of, places

USAGE = Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=4)
FORM = form_of("hermes", reasoning=REASONING["think"])


class Answered:
    """What a renderer asks of a generation."""

    form = FORM

    def usage(self) -> Usage:
        """What it cost."""
        return USAGE


GENERATION: Any = Answered()


def responses() -> ResponseRenderer:
    body = parse_body(ResponsesBody, {"input": "a", "tools": [{"type": "function", "name": "search"}]}, Limits())
    return ResponseRenderer(body, request_id="resp_1", model="tiny", created=1)


def messages() -> MessageRenderer:
    body = MessagesBody(messages=[Turn.model_validate({"role": "user", "content": "a"})], max_tokens=99)
    return MessageRenderer(body, message_id="msg_1", request_id="1", model="tiny")


def pieces_of(texts: Sequence[str], finish: FinishReason) -> list[Piece]:
    return [Piece(0, Delta(text, [1], [], finish if index == len(texts) - 1 else None)) for index, text in enumerate(texts)]


def events_of(renderer: AnswerRenderer, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    made = renderer.events("")
    data = b"".join(made.pieces([piece], GENERATION) for piece in pieces) + made.last(USAGE, Timeline(0, 0, 0, 0))
    return [json.loads(event.split("\n")[1].removeprefix("data: ")) for event in data.decode().split("\n\n")[:-1]]


def whole_of(renderer: AnswerRenderer, pieces: Sequence[Piece]) -> dict[str, Any]:
    choice = WholeChoice()
    for piece in pieces:
        choice.add(piece)
    call: Any = None
    return renderer.whole(call, GENERATION, [choice])


def response_of(events: Sequence[dict[str, Any]]) -> list[Any]:
    """The items that the events of a response tell of, one after the other."""
    items: list[Any] = []
    open_item: dict[str, Any] | None = None
    said = ""
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert open_item is None and event["output_index"] == len(items)
            open_item, said = event["item"], ""
        elif kind.endswith(".delta"):
            assert open_item is not None and (event["item_id"], event["output_index"]) == (open_item["id"], len(items))
            said += event["delta"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert event["text"] == said
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == said
        elif kind == "output_item.done":
            assert open_item is not None and event["item"]["id"] == open_item["id"] and event["item"]["type"] == open_item["type"]
            items.append(event["item"])
            open_item = None
    assert open_item is None
    return items


def message_of(events: Sequence[dict[str, Any]]) -> list[Any]:
    """The blocks that the events of a message tell of, one after the other."""
    blocks: list[Any] = []
    is_open, said = False, ""
    for event in events:
        if "index" in event:
            assert event["index"] == len(blocks) - is_open
        if event["type"] == "content_block_start":
            assert not is_open
            is_open, said = True, ""
            blocks.append({**event["content_block"]})
        elif event["type"] == "content_block_delta":
            said += event["delta"].get("text", "") + event["delta"].get("partial_json", "")
        elif event["type"] == "content_block_stop":
            is_open = False
            blocks[-1].update({"text": said} if blocks[-1]["type"] == "text" else {"input": json.loads(said or "{}")})
    assert not is_open
    return blocks


@examples(150)
@given(
    written=calls,
    places=places,
    thought=st.sampled_from(["", "<think>Hm. é</think>", "<think>\n"]),
    before=st.sampled_from(["", "I look.\n"]),
    behind=st.sampled_from(["", "\nSo <be> it."]),
)
def test_however_an_answer_comes_its_events_are_the_whole(
    written: list[WrittenCall], places: list[int], thought: str, before: str, behind: str
) -> None:
    text = f"{thought}{before}{WRITERS['hermes'][0](written)}{behind}"
    pieces = pieces_of(cut(text, places), "stop")
    response = whole_of(responses(), pieces)
    assert response_of(events_of(responses(), pieces)) == response["output"]
    message = whole_of(messages(), pieces)
    events = events_of(messages(), pieces)
    assert message_of(events) == message["content"]
    assert events[-2]["delta"]["stop_reason"] == message["stop_reason"]
    if thought == "<think>\n":
        return  # all of it is thought
    called = [(item["name"], item["arguments"]) for item in response["output"] if item["type"] == "function_call"]
    assert called == [(call.name, call.arguments) for call in written]
    assert [(block["name"], block["input"]) for block in message["content"] if block["type"] == "tool_use"] == [
        (call.name, json.loads(call.arguments)) for call in written
    ]
    assert message["stop_reason"] == "tool_use"
    texts = [block["text"] for block in message["content"] if block["type"] == "text"]
    assert texts == [part for part in (before.strip(), behind.strip()) if part]
    assert [item["content"][0]["text"] for item in response["output"] if item["type"] == "message"] == texts
    assert [item["content"][0]["text"] for item in response["output"] if item["type"] == "reasoning"] == (["Hm. é"] if thought else [])


@pytest.mark.parametrize("text", ["", "<think>Hm.</think>", " It is 4.\n"])
def test_an_answer_that_calls_nothing_is_text(text: str) -> None:
    pieces = pieces_of([text], "stop")
    assert message_of(events_of(messages(), pieces)) == whole_of(messages(), pieces)["content"]
    said = text.removeprefix("<think>Hm.</think>")
    assert whole_of(messages(), pieces)["content"] == [{"type": "text", "text": said}]
    assert whole_of(messages(), pieces)["stop_reason"] == "end_turn"
    items = response_of(events_of(responses(), pieces))
    assert items == whole_of(responses(), pieces)["output"]
    assert [item["type"] for item in items] == (["reasoning"] if "think" in text else ["message"])


def test_a_call_that_is_cut_off_says_so() -> None:
    pieces = pieces_of(['<tool_call>{"name": "search", "arguments": {"a": "b'], "length")
    (item,) = response_of(events_of(responses(), pieces))
    assert item == whole_of(responses(), pieces)["output"][0]
    assert (item["status"], item["arguments"]) == ("incomplete", '{"a": "b')
    message = whole_of(messages(), pieces)
    assert (message["content"][0]["input"], message["stop_reason"]) == ({"arguments": '{"a": "b'}, "model_context_window_exceeded")


def test_arguments_that_are_no_object_are_told_all_the_same() -> None:
    message = whole_of(messages(), pieces_of(['<tool_call>{"name": "search", "arguments": [1]}</tool_call>'], "stop"))
    assert message["content"][0]["input"] == {"arguments": [1]}
