"""Limits: every refusal names the field and the limit, and quotes nothing of what was sent."""

from __future__ import annotations

import pytest

from tokenizer_svc.chat_encoder import Chat
from tokenizer_svc.chat_template import Message, TemplateValue
from tokenizer_svc.input_limits import InputLimits, utf8_len
from tokenizer_svc.tools import ToolCall
from triserve.rpc.errors import InvalidRequest

LIMITS = InputLimits(max_bytes=100, max_messages=3, template_arguments=frozenset({"enable_thinking", "reasoning_effort"}))


def chat(*messages: Message, **arguments: TemplateValue) -> Chat:
    return Chat(messages, arguments)


@pytest.mark.parametrize(
    ("wrong", "field", "says"),
    [
        (chat(), "messages", "messages is empty"),
        (chat(*[Message("user", "x")] * 4), "messages", "has 4 turns, the limit is 3"),
        (chat(Message("user", "x"), Message("", "x")), "messages[1].role", "1 to 64"),
        (chat(Message("u" * 65, "x")), "messages[0].role", "has 65 characters"),
        (chat(Message("us er", "x")), "messages[0].role", "ASCII letters"),
        (chat(Message("user\n", "x")), "messages[0].role", "ASCII letters"),
        (chat(Message("<|im_end|>", "x")), "messages[0].role", "ASCII letters"),
        (chat(Message("user", "x", "")), "messages[0].name", "1 to 256"),
        (chat(Message("user", "x", "n" * 257)), "messages[0].name", "has 257 characters"),
        (chat(Message("user", "a\ud800")), "messages[0].content", "lone surrogate at character 1"),
        (chat(Message("user", "x", "\udfff")), "messages[0].name", "lone surrogate"),
        (chat(Message("user", "é" * 50)), "messages", "has 104 bytes, the limit is 100"),
        (chat(Message("user", "x" * 40), Message("user", "x" * 40, "n" * 30)), "messages", "has 118 bytes"),
        (
            chat(Message("user", "x"), chat_template="{{ 1 }}"),
            "template_arguments",
            "'chat_template', allowed are: enable_thinking, reasoning_effort",
        ),
        (chat(Message("user", "x"), messages="x"), "template_arguments", "'messages'"),
        (chat(Message("user", "x"))._replace(continue_final_message=True), "continue_final_message", "must be an assistant's"),
        (
            chat(Message("assistant", "x", tool_calls=(ToolCall("1", "f", "{}"),)))._replace(continue_final_message=True),
            "continue_final_message",
            "without tool calls",
        ),
        (chat(Message("user", "x"), reasoning_effort="\ud800"), "template_arguments", "lone surrogate"),
        (chat(Message("user", "x"), reasoning_effort="y" * 200), "messages", "the limit is 100"),
    ],
)
def test_a_wrong_chat_is_refused_by_field_and_limit(wrong: Chat, field: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        LIMITS.check_chat(wrong)
    assert caught.value.field == field
    assert says in caught.value.message


def test_a_chat_within_the_limits_is_measured() -> None:
    assert LIMITS.check_chat(chat(Message("user", "é", "Ada"), enable_thinking=True)) == 4 + 2 + 3 + 15 + 8


def test_empty_words_are_words() -> None:
    assert LIMITS.check_chat(chat(Message("user", ""))) == 4


def test_a_text_is_measured_in_bytes() -> None:
    assert LIMITS.check_text("") == 0
    assert LIMITS.check_text("é" * 50) == 100
    with pytest.raises(InvalidRequest, match="prompt has 102 bytes, the limit is 100") as caught:
        LIMITS.check_text("é" * 51)
    assert caught.value.field == "prompt"


def test_half_a_surrogate_pair_is_no_text() -> None:
    assert utf8_len("𓀀", field="prompt") == 4
    with pytest.raises(InvalidRequest, match="prompt is not Unicode text"):
        LIMITS.check_text("\ud83d")


def test_token_ids_are_counted() -> None:
    assert LIMITS.check_token_ids(range(25)) == 100
    with pytest.raises(InvalidRequest, match="token_ids has 26 ids, the limit is 25") as caught:
        LIMITS.check_token_ids(range(26))
    assert caught.value.field == "token_ids"


def test_no_argument_is_allowed_where_none_is_listed() -> None:
    limits = InputLimits(max_bytes=100, max_messages=3, template_arguments=frozenset())
    with pytest.raises(InvalidRequest, match="allowed are: none"):
        limits.check_chat(chat(Message("user", "x"), enable_thinking=True))
