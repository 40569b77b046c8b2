"""OpenAI's bodies are read strictly: what is not done is refused by name, what asks for nothing is let through."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.limits import Limits
from gateway.http.openai.chat_body import ChatBody
from gateway.http.openai.completion_body import CompletionBody
from gateway.http.openai.fields import REFUSED, REFUSED_IN_MESSAGE
from gateway.http.openai.generating import Generating
from gateway.http.openai.parsing import parse_body
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
        ("tools", []),
        ("functions", []),
        ("tool_choice", "none"),
        ("tool_choice", "auto"),
        ("function_call", "auto"),
        ("parallel_tool_calls", False),
        ("parallel_tool_calls", True),
        ("response_format", {"type": "text"}),
        ("store", False),
        ("store", True),
        ("metadata", {"session": "7"}),
        ("modalities", ["text"]),
        ("service_tier", "auto"),
        ("service_tier", "flex"),
        ("prompt_cache_key", "x"),
        ("prompt_cache_retention", "24h"),
        ("safety_identifier", "u-1"),
        ("prediction", {"type": "content", "content": "x"}),
        ("verbosity", "medium"),
        ("user", "u-1"),
        ("echo", False),
        ("best_of", 1),
        ("suffix", ""),
        ("skip_special_tokens", True),
        ("add_generation_prompt", True),
        ("continue_final_message", False),
        ("use_beam_search", False),
        ("length_penalty", 1.0),
        ("top_logprobs", 0),
        ("logit_bias", {}),
        ("chat_template_kwargs", {}),
    ],
)
def test_a_field_that_asks_for_nothing_is_let_through(name: str, value: object) -> None:
    for kind, body in ((ChatBody, {"messages": HELLO}), (CompletionBody, {"prompt": "a"})):
        if name in ("top_logprobs", "chat_template_kwargs") and kind is CompletionBody:
            continue
        bare = parse_body(kind, body, LIMITS)
        assert parse_body(kind, {**body, name: value}, LIMITS).wishes() == bare.wishes()


@pytest.mark.parametrize("name", [*ChatBody.model_fields, *REFUSED])
def test_null_is_as_good_as_absent(name: str) -> None:
    if name != "messages":
        assert chat(**{name: None}) == chat()
    for null in ({**HELLO[0], "name": None}, {**HELLO[0], **dict.fromkeys(REFUSED_IN_MESSAGE)}):
        assert parse_body(ChatBody, {"messages": [null]}, LIMITS) == chat()


@pytest.mark.parametrize("message", [{}, {"content": None}, {"content": ""}, {"content": []}])
def test_an_assistant_may_have_said_nothing(message: dict[str, Any]) -> None:
    body = parse_body(ChatBody, {"messages": [*HELLO, {"role": "assistant", **message}, *HELLO]}, LIMITS)
    assert [one.content for one in body.messages] == ["Hello", "", "Hello"]
    if message.get("content") is None:
        assert refused(ChatBody, {"messages": [{"role": "user", **message}]}).field == "messages[0].content"


def test_a_text_part_may_say_how_it_is_cached() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "annotations": None}
    assert parse_body(ChatBody, {"messages": [{"role": "user", "content": [part]}]}, LIMITS).messages[0].content == "a"
    error = refused(ChatBody, {"messages": [{"role": "user", "content": [{**part, "citations": ["x"]}]}]})
    assert (error.field, "'citations'" in error.message) == ("messages[0].content", True)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"functions": [{}], "modalities": ["audio"]}, "functions"),
        ({"suffix": "a", "echo": True, "modalities": ["audio"]}, "modalities"),
        ({"foo": 1, "function_call": "required"}, "function_call"),
        ({"verbosity": "low", "suffix": "x"}, "suffix"),
    ],
)
def test_of_several_refused_fields_the_one_that_matters_is_named(fields: dict[str, Any], named: str) -> None:
    for ordered in (fields, dict(reversed(fields.items()))):
        assert refused(ChatBody, {**ordered, "messages": HELLO}).field == named


def test_the_effort_of_reasoning_is_an_argument_of_the_template_that_must_read_it() -> None:
    body = chat(reasoning_effort="high")
    (argument,) = body.prompt().chat.template_arguments
    assert (argument.name, argument.string_value, body.template_must_read) == ("reasoning_effort", "high", ("reasoning_effort",))
    assert chat(chat_template_kwargs={"reasoning_effort": "high"}).template_must_read == ()
    with pytest.raises(InvalidRequest, match="differs"):
        chat(reasoning_effort="high", chat_template_kwargs={"reasoning_effort": "low"}).prompt()


def test_a_chat_says_how_its_prompt_ends_and_a_completion_has_no_template_to_say_it_to() -> None:
    def end(**fields: Any) -> tuple[bool, bool | None]:
        made = chat(**fields).prompt().chat
        return made.continue_final_message, made.add_generation_prompt if made.HasField("add_generation_prompt") else None

    assert end() == end(add_generation_prompt=True, continue_final_message=False) == (False, None)
    assert end(add_generation_prompt=False) == (False, False)
    assert end(continue_final_message=True) == (True, None)
    assert end(continue_final_message=True, add_generation_prompt=False) == (True, False)
    with pytest.raises(InvalidRequest, match="both true") as caught:
        end(continue_final_message=True, add_generation_prompt=True)
    assert caught.value.field == "continue_final_message"
    for name, value in (("add_generation_prompt", False), ("continue_final_message", True)):
        assert refused(CompletionBody, {"prompt": "a", name: value}).field == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("modalities", ["audio"]),
        ("echo", True),
        ("verbosity", "high"),
    ],
)
def test_a_field_that_asks_for_what_is_not_done_is_refused(name: str, value: object) -> None:
    error = refused(ChatBody, {"messages": HELLO, name: value})
    assert error.field == name
    assert error.message.startswith(f"{name} is not supported")


def test_a_refusal_says_what_is_allowed() -> None:
    assert refused(ChatBody, {"messages": HELLO, "echo": True}).message == "echo is not supported, it may be false"
    assert refused(CompletionBody, {"prompt": "a", "tools": [{}]}).message == "tools is not supported"


@given(st.text(min_size=1))
def test_any_unknown_field_is_refused_by_name(name: str) -> None:
    if name in ChatBody.model_fields or name in REFUSED:
        return
    error = refused(ChatBody, {"messages": HELLO, "temperature": "also wrong", name: 1})
    assert name[:128] in error.message


def test_null_means_unset() -> None:
    body = chat(**{name: None for name in ChatBody.model_fields if name not in ("messages", "model")})
    assert body.wishes() == chat().wishes()


def test_ids_that_are_none_are_named_together_in_bounds() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_body(CompletionBody, {"prompt": "a", "logit_bias": {"5": 1, **{f"bad{n}": 1 for n in range(100)}}}, LIMITS).wishes()
    assert caught.value.field == "logit_bias"
    assert "'bad0', 'bad1'" in caught.value.message and "bad50" not in caught.value.message


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


# What a body says besides how to draw and when to stop.
_NO_WISHES = {
    *("cache", "model", "n", "stream", "stream_options", "priority", "user", "return_token_ids", "return_timeline"),
    "truncate_prompt_tokens",
    "return_tokens_as_token_ids",
    # How answers are looked for; see test_search_fields.py.
    *("best_of", "use_beam_search", "length_penalty", "early_stopping", "penalty_alpha"),
}
_OF_A_FORM = {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}
_OTHER = {"float": 0.25, "int": 3, "bool": True, "dict": {"5": 1.0}, "list[int]": [3], "list": ["end"]}
# Of fields that are true unless it is said that they are not.
_TRUE = {"skip_special_tokens", "spaces_between_special_tokens"}


@pytest.mark.parametrize("name", sorted(Generating.model_fields.keys() - _NO_WISHES))
def test_every_field_that_is_not_without_effect_reaches_the_wishes(name: str) -> None:
    field = Generating.model_fields[name]
    kind = str(field.annotation).removeprefix("typing.")
    other = next((value for start, value in _OTHER.items() if kind.replace("typing.Optional[", "").startswith(start)), "a")
    other = False if name in _TRUE else _OF_A_FORM.get(name, other)
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "a"}], name: other})
    plain = ChatBody.model_validate({"messages": [{"role": "user", "content": "a"}]})
    has_effect = not (field.json_schema_extra or {})
    assert (body.wishes() != plain.wishes()) is has_effect
