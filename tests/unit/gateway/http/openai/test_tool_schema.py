"""Tools in OpenAI's bodies: what reaches the tokenizer, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.flow.call import AnswerReading
from gateway.flow.limits import Limits
from gateway.http.openai.chat_body import ChatBody
from gateway.http.openai.completion_body import CompletionBody
from gateway.http.openai.parsing import parse_body
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import tokenizer_pb2

LIMITS = Limits(max_json_items=1 << 20)
HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "required": ["b", "a"], "properties": {"b": {"type": "number", "default": 1.50}, "a": {"enum": ["é", None]}}}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "get_weather", "description": "Of a city.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "get-time"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"b": 1}'}}


def body(**fields: Any) -> ChatBody:
    return parse_body(ChatBody, {"messages": HELLO, **fields}, LIMITS)


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        made = body(**fields)
        made.prompt()
    return caught.value


def test_tools_reach_the_tokenizer_as_they_are() -> None:
    asked = body(tools=[WEATHER, TIME], tool_choice="auto")
    first, second = asked.prompt().chat.tools
    assert (first.name, first.description) == ("get_weather", "Of a city.")
    assert first.parameters_json == json.dumps(SCHEMA, ensure_ascii=False), "in the client's order"
    assert (second.name, second.HasField("description"), second.HasField("parameters_json")) == ("get-time", False, False)
    assert asked.reading.tools == {"get_weather", "get-time"}
    assert (asked.reading.parallel, asked.reading.must_call) == (True, False)


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": None}, {"tool_choice": "auto"}, {"tool_choice": "none"}])
def test_without_tools_none_are_looked_for(fields: dict[str, Any]) -> None:
    asked = body(**fields)
    assert not asked.prompt().chat.tools
    assert asked.reading == AnswerReading()


def test_tools_that_must_not_be_called_are_not_given_to_the_model() -> None:
    asked = body(tools=[WEATHER], tool_choice="none")
    assert (list(asked.prompt().chat.tools), asked.reading.tools) == ([], frozenset())


@pytest.mark.parametrize(("said", "parallel"), [({}, True), ({"parallel_tool_calls": True}, True), ({"parallel_tool_calls": False}, False)])
def test_whether_calls_may_be_parallel_is_kept(said: dict[str, Any], parallel: bool) -> None:
    assert body(tools=[TIME], **said).reading.parallel is parallel


def test_calls_and_their_results_reach_the_tokenizer() -> None:
    turns = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call_2", "index": 1}], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "12"}, {"type": "text", "text": "°C"}]},
    ]
    _, asked, told = body(messages=turns).prompt().chat.messages
    assert (asked.content, asked.reasoning) == ("", "hm")
    assert list(asked.tool_calls) == [
        tokenizer_pb2.ToolCall(id=one, name="get_weather", arguments='{"b": 1}') for one in ("call_1", "call_2")
    ]
    assert (told.role, told.content, told.tool_call_id) == ("tool", "12\n°C", "call_1")


def test_arguments_that_are_no_json_are_kept_as_they_are() -> None:
    call = {**CALL, "function": {"name": "f", "arguments": '{"a": 1,,'}}
    _, turn = body(messages=[*HELLO, {"role": "assistant", "tool_calls": [call]}]).prompt().chat.messages
    assert turn.tool_calls[0].arguments == '{"a": 1,,'


FUNCTION = {"type": "function", "function": {"name": "get-time"}}


@pytest.mark.parametrize(
    ("choice", "must_call", "offered"),
    [("auto", False, ["get_weather", "get-time"]), ("required", True, ["get_weather", "get-time"]), (FUNCTION, True, ["get-time"])],
    ids=["auto", "required", "named"],
)
def test_what_must_be_called_and_by_which_schema_is_kept(choice: Any, must_call: bool, offered: list[str]) -> None:
    asked = body(tools=[{"type": "function", "function": {**WEATHER["function"], "strict": True}}, TIME], tool_choice=choice)
    assert [tool.name for tool in asked.prompt().chat.tools] == ["get_weather", "get-time"], "the model sees all of them"
    reading = asked.reading
    assert (reading.must_call, [tool.name for tool in reading.offered], reading.is_named) == (must_call, offered, choice == FUNCTION)
    assert reading.tools == {"get_weather", "get-time"}
    schemas = {"get_weather": (json.dumps(SCHEMA, ensure_ascii=False), True), "get-time": (None, False)}
    assert {tool.name: (tool.parameters, tool.is_strict) for tool in reading.offered} == {name: schemas[name] for name in offered}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tool_choice": "required"}, "tools is empty"),
        ({"tool_choice": FUNCTION}, "tools is empty"),
        ({"tools": [WEATHER], "tool_choice": FUNCTION}, "'get-time', which is not in tools"),
    ],
)
def test_a_call_of_what_there_is_not_cannot_be_asked_for(fields: dict[str, Any], says: str) -> None:
    error = refused(**fields)
    assert error.field == "tool_choice" and says in error.message


def function(**changes: Any) -> list[Any]:
    return [{"type": "function", "function": {"name": "f", **changes}}]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"description": "x"}}]}, "tools[0].function.name"),
        ({"tools": function(name="a b")}, "tools[0].function.name"),
        ({"tools": function(name="a\n")}, "tools[0].function.name"),
        ({"tools": function(name="")}, "tools[0].function.name"),
        ({"tools": function(name="a" * 129)}, "tools[0].function.name"),
        ({"tools": function(name="<|im_end|>")}, "tools[0].function.name"),
        ({"tools": function(parameters="{}")}, "tools[0].function.parameters"),
        ({"tools": function(parameters={"a": "\ud800"})}, "tools[0].function.parameters"),
        ({"tools": function(description="\ud800")}, "tools[0].function.description"),
        ({"tools": function(colour="red")}, "tools[0].function.colour"),
        ({"tools": [*function(), *function()]}, "tools[1].function.name"),
        ({"tools": function() * 129}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}, "more": 1}}, "tool_choice"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}]}, "messages[0].tool_calls[0].type"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL] * 129}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{**CALL, "id": "x" * 257}]}]}, "messages[0].tool_calls[0].id"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a", "tool_call_id": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "x" * 257}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "tool_call_id": "x"}]}, "messages[0].content"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"messages": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
    ],
)
def test_what_is_wrong_with_tools_is_named(fields: dict[str, Any], field: str) -> None:
    assert refused(**fields).field == field


def test_nulls_within_tools_are_as_good_as_absent() -> None:
    nulls = [{"type": "function", "function": {"name": "f", "description": None, "parameters": None, "strict": None}}]
    assert body(tools=nulls).prompt() == body(tools=function()).prompt()


def test_completions_have_no_tools() -> None:
    with pytest.raises(InvalidRequest, match="tools is not supported"):
        parse_body(CompletionBody, {"prompt": "a", "tools": function()}, LIMITS)
    assert parse_body(CompletionBody, {"prompt": "a", "tools": [], "tool_choice": "auto"}, LIMITS).reading is None


def test_what_openais_client_has_parsed_may_be_sent_back() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"a": [1]}}}
    sent = {"role": "assistant", "content": None, "parsed": {"a": {"b": 1}}, "tool_calls": [call]}
    turns = [{"role": "user", "content": "Hi"}, sent, {"role": "tool", "tool_call_id": "c", "content": "1"}]
    plain = [turns[0], {**sent, "parsed": None, "tool_calls": [{**call, "function": {"name": "f", "arguments": "{}"}}]}, turns[2]]
    read, wanted = (parse_body(ChatBody, {"messages": messages}, LIMITS).prompt() for messages in (turns, plain))
    assert read == wanted


def test_a_chat_may_have_the_tokenizers_own_special_tokens() -> None:
    for asked, wanted in ((True, True), (False, False), (None, False)):
        body = parse_body(ChatBody, {"messages": [{"role": "user", "content": "Hi"}], "add_special_tokens": asked}, LIMITS)
        assert body.prompt().chat.add_special_tokens is wanted
