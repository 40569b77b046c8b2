"""OpenAI's bodies are read strictly: what is not done is refused by name, what asks for nothing is let through."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.limits import Limits
from gateway.http.openai_schema import ChatBody, CompletionBody, parse_body
from gateway.http.routes.generating import cache_policy
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import tokenizer_pb2

LIMITS = Limits()
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> ChatBody:
    return parse_body(ChatBody, {"messages": HELLO, **fields}, LIMITS)


def refused(kind: Any, body: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_body(kind, body, LIMITS)
    return caught.value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", None),
        ("tool_choice", "none"),
        ("parallel_tool_calls", False),
        ("response_format", {"type": "text"}),
        ("store", False),
        ("metadata", {}),
        ("modalities", ["text"]),
        ("service_tier", "auto"),
        ("echo", False),
        ("best_of", 1),
        ("suffix", None),
    ],
)
def test_a_field_that_asks_for_nothing_is_let_through(name: str, value: object) -> None:
    assert chat(**{name: value}).messages


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", []),
        ("tool_choice", "auto"),
        ("parallel_tool_calls", True),
        ("response_format", {"type": "json_schema"}),
        ("store", 0),
        ("modalities", ["audio"]),
        ("echo", True),
        ("best_of", 1.0),
        ("reasoning_effort", "high"),
    ],
)
def test_a_field_that_asks_for_what_is_not_done_is_refused(name: str, value: object) -> None:
    error = refused(ChatBody, {"messages": HELLO, name: value})
    assert (error.field, error.message) == (name, f"{name} is not supported")


@given(st.text(min_size=1))
def test_any_unknown_field_is_refused_by_name(name: str) -> None:
    if name in ChatBody.model_fields or name == "n":
        return
    error = refused(ChatBody, {"messages": HELLO, "temperature": "also wrong", name: 1})
    assert name[:128] in error.message


def test_null_means_unset() -> None:
    body = chat(**{name: None for name in ChatBody.model_fields if name not in ("messages", "model")})
    assert body.wishes() == chat().wishes()


@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "n", "seed", "max_tokens", "min_tokens", "top_k", "stop_token_ids", "logit_bias", "stream", "priority"]
)
@pytest.mark.parametrize("value", ["1", {"a": {}}, [[]]])
def test_a_value_of_another_type_is_refused_by_name(name: str, value: object) -> None:
    assert refused(ChatBody, {"messages": HELLO, name: value}).field.startswith(name)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), ("", [""]), ([], []), ([[]], [[]])],
)
def test_every_form_of_prompt_becomes_a_list(prompt: object, expected: object) -> None:
    assert parse_body(CompletionBody, {"prompt": prompt}, LIMITS).prompt == expected


@pytest.mark.parametrize("prompt", [1, None, True, [True], ["a", 1], [[1], "a"], [[1.5]], [["a"]], [[[1]]], {}, [-1], [2**32]])
def test_any_other_prompt_is_refused(prompt: object) -> None:
    assert refused(CompletionBody, {"prompt": prompt}).field == "prompt"


def test_template_arguments_keep_their_types() -> None:
    arguments = chat(chat_template_kwargs={"a": True, "b": 3, "c": "x"}).prompt().chat.template_arguments
    assert [(one.name, one.WhichOneof("value")) for one in arguments] == [("a", "bool_value"), ("b", "int_value"), ("c", "string_value")]


def test_the_speakers_name_reaches_the_template_and_none_differs_from_empty() -> None:
    messages = parse_body(ChatBody, {"messages": [{"role": "user", "content": "a", "name": ""}, *HELLO]}, LIMITS).prompt().chat.messages
    assert [message.HasField("name") for message in messages] == [True, False]
    assert isinstance(messages[0], tokenizer_pb2.ChatMessage)


@pytest.mark.parametrize(
    ("header", "read", "write"),
    [
        ("", True, True),
        ("no-cache", False, True),
        ("no-store", False, False),
        ("max-age=0, No-Store", False, False),
        ("private", True, True),
    ],
)
def test_cache_control_says_what_the_cache_may_do(header: str, read: bool, write: bool) -> None:
    policy = cache_policy(header)
    assert (policy.read, policy.write) == (read, write)
