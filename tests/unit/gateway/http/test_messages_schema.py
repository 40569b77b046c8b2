"""A message's body is read strictly: what is not done is refused by name, what asks for nothing is let through."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.flow.limits import Limits
from gateway.http.messages.errors import error_answer
from gateway.http.messages.schema import REFUSED_IN_MESSAGES, CountBody, MessagesBody
from gateway.http.openai.chat_body import ChatBody
from gateway.http.openai.parsing import parse_body
from triserve.rpc.errors import (
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    NotFound,
    Overloaded,
    PromptTooLong,
    ServiceError,
    Unauthenticated,
    Unavailable,
)

HELLO = [{"role": "user", "content": "Hello"}]


def read(**fields: Any) -> MessagesBody:
    return parse_body(MessagesBody, {"messages": HELLO, "max_tokens": 9, **fields}, Limits())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        *[({name: {"some": "thing"}}, name) for name in REFUSED_IN_MESSAGES],
        ({"foo": 1}, "foo"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": HELLO * 1025}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"system": [{"type": "document"}]}, "system"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"metadata": {"user": "x"}}, "metadata.user"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f", "input_schema": {}, "type": "bash_20250124"}]}, "tools[0].type"),
        ({"tools": [{"name": "f", "input_schema": {}, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "1"}]}]}, "messages[0]"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": "{}"}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {}}]}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}]}]},
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "colour": "red"}]}]},
            "messages[0].content",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_not_done_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    assert caught.value.field == named


def test_null_and_what_asks_for_nothing_are_as_good_as_absent() -> None:
    for name, values in REFUSED_IN_MESSAGES.items():
        for value in (None, *values):
            assert read(**{name: value}) == read(), name
    for name in MessagesBody.model_fields:
        if name not in ("messages", "max_tokens"):
            assert read(**{name: None}) == read(), name


def test_a_count_takes_of_a_message_what_makes_its_prompt() -> None:
    body = {"messages": HELLO, "system": "Be brief", "tools": []}
    assert parse_body(CountBody, body, Limits()).prompt() == read(system="Be brief").prompt()
    with pytest.raises(InvalidRequest):
        parse_body(CountBody, {**body, "max_tokens": 9}, Limits())


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL: dict[str, Any] = {"name": "f", "description": "d", "input_schema": SCHEMA, "strict": True, "cache_control": {"type": "ephemeral"}}


def test_tools_are_those_of_a_chat() -> None:
    function = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
    for choice, of_chat in (
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ):
        for is_single in (False, True):
            body = read(tools=[TOOL], tool_choice={**choice, "disable_parallel_tool_use": is_single})
            fields = {"tools": [{"type": "function", "function": function}], "tool_choice": of_chat, "parallel_tool_calls": not is_single}
            chat = parse_body(ChatBody, {"messages": HELLO, **fields}, Limits())
            assert (body.reading, body.prompt()) == (chat.reading, chat.prompt())
    with pytest.raises(InvalidRequest) as caught:
        assert read(tools=[TOOL], tool_choice={"type": "tool", "name": "g"}).reading
    assert caught.value.field == "tool_choice"


def test_calls_and_their_results_are_turns_in_their_order() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"é": 1}},
                {"type": "tool_use", "id": "2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "x"},
                {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "y"}], "is_error": True},
                {"type": "tool_result", "tool_use_id": "3"},
                {"type": "text", "text": "c"},
            ],
        },
        {"role": "user", "content": "d"},
    ]
    turns = read(messages=messages).prompt().chat.messages
    assert [
        (turn.role, turn.content, [(one.id, one.name, one.arguments) for one in turn.tool_calls], turn.tool_call_id) for turn in turns
    ] == [
        ("user", "a", [], ""),
        ("assistant", "b", [("1", "f", '{"é": 1}'), ("2", "g", "{}")], ""),
        ("tool", "x", [], "1"),
        ("tool", "Error: y", [], "2"),
        ("tool", "", [], "3"),
        ("user", "c\nd", [], ""),
    ]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("x"), 400, "invalid_request_error"),
        (PromptTooLong("x"), 400, "invalid_request_error"),
        (Unauthenticated("x"), 401, "authentication_error"),
        (NotFound("x"), 404, "not_found_error"),
        (Overloaded("x"), 429, "rate_limit_error"),
        (Internal("x"), 500, "api_error"),
        (DeadlineExceeded("x"), 504, "timeout_error"),
        (Unavailable("x"), 529, "overloaded_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ServiceError) else str(value),
)
def test_errors_have_the_status_and_type_by_which_clients_know_them(error: ServiceError, status: int, kind: str) -> None:
    answer = error_answer(error, "id")
    assert (answer.status, answer.body["error"]["type"], answer.body["request_id"]) == (status, kind, "id")
    assert answer.body["error"]["message"].endswith("x")
