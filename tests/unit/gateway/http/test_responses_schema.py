"""A response's body is read strictly: what is not done is refused by name, what asks for nothing is let through."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.flow.limits import Limits
from gateway.http.openai.chat_body import ChatBody
from gateway.http.openai.parsing import parse_body
from gateway.http.responses.schema import REFUSED_IN_RESPONSE, ResponsesBody
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import common_pb2


def read(**fields: Any) -> ResponsesBody:
    return parse_body(ResponsesBody, {"input": "Hello", **fields}, Limits())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        *[({name: {"some": "thing"}}, name) for name in REFUSED_IN_RESPONSE],
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_object", "grammar": "x"}}}, "text.format.grammar"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"foo": 1}}, "text.foo"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"foo": 1}, "foo"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": {}, "call_id": "1"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": [{"type": "input_file"}]}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"input": [{"role": "user", "content": "x", "colour": "red"}]}, "input[0].colour"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"parallel_tool_calls": 3}, "parallel_tool_calls"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": "\ud800"}]}, "input[0].content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"role": "user", "content": "x"}] * 1025}, "input"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_not_done_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    assert caught.value.field == named


def test_null_and_what_asks_for_nothing_are_as_good_as_absent() -> None:
    for name, values in REFUSED_IN_RESPONSE.items():
        for value in (None, *values):
            assert read(**{name: value}) == read(), name
    for name in ResponsesBody.model_fields:
        if name != "input":
            assert read(**{name: None}) == read(), name
    assert read(text={"format": {"type": "text"}, "verbosity": "medium"}).prompt() == read().prompt()
    assert read(reasoning={"effort": None, "summary": None}).template_must_read == ()


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def test_a_format_of_the_text_is_the_grammar_of_a_chat_and_comes_back_as_it_was() -> None:
    asked = {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}
    body = read(text={"format": {**asked, "description": None}})
    of_chat = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    chat = parse_body(ChatBody, {"messages": [{"role": "user", "content": "a"}], "response_format": of_chat}, Limits())
    assert body.wishes().grammar is not None
    assert body.wishes().grammar == chat.wishes().grammar
    assert (body.wishes().spelled("grammar"), body.format) == ("text.format", asked)
    any_object = read(text={"format": {"type": "json_object"}})
    assert any_object.wishes().grammar == common_pb2.Grammar(json_schema='{"type":"object"}')
    for plain in (read(), read(text={}), read(text={"format": {"type": "text"}})):
        assert (plain.wishes().grammar, plain.format) == (None, {"type": "text"})


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"type": "json_schema", "schema": SCHEMA}, "text.format.name"),
        ({"type": "json_schema", "name": "place"}, "text.format.schema"),
        ({"type": "json_object", "name": "place"}, "text.format.name"),
        ({"type": "text", "schema": SCHEMA}, "text.format.schema"),
    ],
)
def test_a_format_that_is_half_said_is_refused_by_what_is_wrong(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(text={"format": asked}).wishes()
    assert caught.value.field == named


def test_the_likeliest_tokens_come_with_the_log_probabilities_of_which_they_are() -> None:
    included = ["message.output_text.logprobs"]
    assert [read(**fields).wishes().top_logprobs for fields in ({}, {"include": included}, {"include": included, "top_logprobs": 3})] == [
        None,
        0,
        3,
    ]
    with pytest.raises(InvalidRequest) as caught:
        read(top_logprobs=3).wishes()
    assert caught.value.field == "top_logprobs"


TOOL: dict[str, Any] = {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": True}


def test_tools_are_those_of_a_chat() -> None:
    chat_tool = {"type": "function", "function": {name: value for name, value in TOOL.items() if name != "type"}}
    for choice, of_chat in (("required", "required"), ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}})):
        body = read(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
        chat = parse_body(
            ChatBody,
            {
                "messages": [{"role": "user", "content": "Hello"}],
                "tools": [chat_tool],
                "tool_choice": of_chat,
                "parallel_tool_calls": False,
            },
            Limits(),
        )
        assert (body.reading, body.prompt()) == (chat.reading, chat.prompt())
    for fields in ({"tools": [TOOL, TOOL]}, {"tool_choice": "required"}):
        with pytest.raises(InvalidRequest):
            assert read(**fields).reading


def test_what_a_model_thought_said_and_called_in_one_go_is_one_turn() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    items = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}], "status": "completed"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {**call, "id": "fc_1", "status": "completed"},
        {**call, "call_id": "2"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "y"}]},
        call,
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    turns = read(input=items).prompt().chat.messages
    assert [(turn.role, turn.content, [one.id for one in turn.tool_calls], turn.tool_call_id, turn.reasoning) for turn in turns] == [
        ("user", "a", [], "", ""),
        ("assistant", "b", ["1", "2"], "", "hm"),
        ("tool", "x", [], "1", ""),
        ("tool", "y", [], "2", ""),
        ("assistant", "", ["1"], "", ""),
        ("assistant", "c", [], "", ""),
        ("assistant", "d", [], "", ""),
    ]
