"""Tools and calls are held against every limit of the contract before any work is done for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tokenizer_svc.chat_encoder import Chat
from tokenizer_svc.chat_template import Message
from tokenizer_svc.input_limits import InputLimits
from tokenizer_svc.tools import Tool, ToolCall
from triserve.rpc.errors import InvalidRequest

LIMITS = InputLimits(max_bytes=1000, max_messages=9, template_arguments=frozenset())
CALL = ToolCall("id", "f", "{}")
QUESTION = Message("user", "x")


def asking(*calls: ToolCall, **changes: Any) -> Chat:
    return Chat((QUESTION, replace(Message("assistant", "", tool_calls=calls), **changes)))


@pytest.mark.parametrize(
    ("chat", "field"),
    [
        (Chat((QUESTION,), tools=(Tool("f"),) * 2), "tools"),
        (Chat((QUESTION,), tools=tuple(Tool(f"f{number}") for number in range(129))), "tools"),
        *((Chat((QUESTION,), tools=(Tool("g"), Tool(name))), "tools[1].function.name") for name in ("", "a b", "a\n", "é", "x" * 129)),
        (Chat((QUESTION,), tools=(Tool("f", "\ud800"),)), "tools[0].function.description"),
        (Chat((QUESTION,), tools=(Tool("f", None, "\ud800"),)), "tools[0].function.parameters"),
        (asking(*(CALL,) * 129), "messages[1].tool_calls"),
        (asking(CALL, role="user"), "messages[1].tool_calls"),
        (asking(CALL, replace(CALL, name="")), "messages[1].tool_calls[1].function.name"),
        (asking(replace(CALL, name="x" * 129)), "messages[1].tool_calls[0].function.name"),
        (asking(replace(CALL, id="x" * 257)), "messages[1].tool_calls[0].id"),
        (asking(replace(CALL, arguments="\ud800")), "messages[1].tool_calls[0].function.arguments"),
        (asking(tool_call_id="x" * 257), "messages[1].tool_call_id"),
        (asking(reasoning="\ud800"), "messages[1].reasoning_content"),
    ],
)
def test_what_is_over_a_limit_is_named(chat: Chat, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        LIMITS.check_chat(chat)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "chat",
    [
        Chat((QUESTION,), tools=tuple(Tool(f"f{number}") for number in range(128))),
        Chat((QUESTION,), tools=(Tool("x" * 128, "é", '{"not": "read yet"'),)),
        asking(*(replace(CALL, id=""),) * 128),
        asking(replace(CALL, id="x" * 256, name="é" * 128)),
    ],
)
def test_what_is_at_a_limit_is_taken(chat: Chat) -> None:
    assert LIMITS.check_chat(chat) > 0


BARE = asking(CALL)


@pytest.mark.parametrize(
    ("chat", "more"),
    [
        (BARE._replace(tools=(Tool("f", "é" * 5, "{}"),)), 13),
        (asking(CALL, replace(CALL, arguments='{"é": 1}')), 2 + 1 + 9),
        (asking(CALL, tool_call_id="é"), 2),
        (asking(CALL, reasoning="éé"), 4),
    ],
)
def test_every_byte_counts(chat: Chat, more: int) -> None:
    size = LIMITS.check_chat(chat)
    assert size == LIMITS.check_chat(BARE) + more
    assert replace(LIMITS, max_bytes=size).check_chat(chat) == size
    with pytest.raises(InvalidRequest, match=f"has {size} bytes, the limit is {size - 1}"):
        replace(LIMITS, max_bytes=size - 1).check_chat(chat)
