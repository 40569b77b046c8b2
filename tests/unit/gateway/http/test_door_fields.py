"""Whatever a door takes it does something with: every field of every body that has a model answer has a decision here, and a new one needs one."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.flow.call import AnswerReading, Wishes
from gateway.flow.limits import Limits
from gateway.flow.search.kinds import Search
from gateway.http.messages.schema import MessagesBody
from gateway.http.openai.chat_body import ChatBody
from gateway.http.openai.completion_body import CompletionBody
from gateway.http.openai.parsing import parse_body
from gateway.http.openai.values import WITHOUT_EFFECT, Body
from gateway.http.responses.schema import ResponsesBody
from triserve.v1 import tokenizer_pb2

HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
# As each door writes a tool, and that it is to be called no more.
TOOLS_OF: dict[type[Body], list[dict[str, Any]]] = {
    ChatBody: TOOLS,
    ResponsesBody: [{"type": "function", "name": "f"}],
    MessagesBody: [{"name": "f", "input_schema": {}}],
}
LEAST: dict[type[Body], dict[str, Any]] = {
    ChatBody: {"messages": HELLO},
    CompletionBody: {"prompt": "Hello"},
    ResponsesBody: {"input": "Hello"},
    MessagesBody: {"messages": HELLO, "max_tokens": 9},
}
# What bears on who answers, when, and how it is delivered: read by `call_of` and the answers' forms, which tests of each door look at.
ELSEWHERE = {
    *("model", "n", "stream", "stream_options", "priority", "cache", "user", "metadata", "truncate_prompt_tokens"),
    *("return_token_ids", "return_timeline", "return_tokens_as_token_ids", "echo"),
    # Of messages: what is the default of other doors' max_tokens.
    "max_tokens",
}
# Values that change something, where none of the usual ones is one.
OTHERS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Bye"}],
    "prompt": "Bye",
    "input": "Bye",
    "top_logprobs": 3,
    "chat_template_kwargs": {"a": 1},
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "add_generation_prompt": False,
    "add_special_tokens": False,
    "reasoning": {"effort": "low"},
    "include": ["message.output_text.logprobs"],
    "logit_bias": {"5": 1.0},
    "text": {"format": {"type": "json_object"}},
    "response_format": {"type": "json_object"},
    "structured_outputs": {"regex": "a"},
    "tools": TOOLS,
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "early_stopping": "never",
}
WITH: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True, "include": ["message.output_text.logprobs"]},
    "tool_choice": {"tools": TOOLS},
    "parallel_tool_calls": {"tools": TOOLS},
    "length_penalty": {"use_beam_search": True},
    "early_stopping": {"use_beam_search": True},
    "penalty_alpha": {"top_k": 4},
}


def asked(kind: type[Body], **fields: Any) -> tuple[Wishes, AnswerReading | None, tuple[Search | None, bool], Any]:
    """What the tokenizer and the stages get of a body."""
    body: Any = parse_body(kind, {**LEAST[kind], **{name: value for name, value in fields.items() if name in kind.model_fields}}, Limits())
    prompts = body.prompts() if isinstance(body, CompletionBody) else (body.prompt(),)
    return (
        body.wishes(),
        body.reading,
        (body.search, body.is_rewritten),
        [one.SerializeToString() if isinstance(one, tokenizer_pb2.EncodeRequest) else one for one in prompts],
    )


def usual(kind: type[Body], name: str) -> Any:
    said = str(kind.model_fields[name].annotation)
    for start, value in (("float", 0.25), ("bool", True), ("int", 3), ("list[int]", [3]), ("list", ["end"]), ("", "a")):
        if said.removeprefix("<class '").startswith(start):
            return value


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in LEAST for name in kind.model_fields], ids=str)
def test_every_field_reaches_the_stages_or_has_no_effect_by_its_own_account(kind: type[Body], name: str) -> None:
    extra = kind.model_fields[name].json_schema_extra
    if name in ELSEWHERE:
        return
    besides = {**WITH.get(name, {})}
    value = OTHERS.get(name, usual(kind, name))
    if "tools" in besides:
        besides["tools"] = TOOLS_OF.get(kind)
    if name == "tools":
        value = TOOLS_OF[kind]
    if (name, kind) == ("add_special_tokens", ChatBody):
        value = True
    if (name, kind) == ("tool_choice", MessagesBody):
        value = {"type": "none"}
    if isinstance(extra, dict) and WITHOUT_EFFECT in extra:
        value = {} if "dict" in str(kind.model_fields[name].annotation) else value
        assert asked(kind, **{name: value}) == asked(kind)
    else:
        assert asked(kind, **{**besides, name: value}) != asked(kind, **besides)
