"""What splits the scope within which one answer may serve another question: every field of every request has a decision here, and a new one needs one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from gateway.flow.answer_cache import AnswerCache, last_question
from gateway.flow.call import CachePolicy, Call, Wishes
from gateway.flow.generations.generation import Choice, EncodedPrompt
from gateway.flow.served_model import ServedModel
from prompt_cache import CacheConfig, PromptCache
from tests.fakes.fake_stages import MODEL
from tests.fakes.semantic_parts import SemanticScene
from tests.unit.gateway.flow.changed_fields import with_field
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import common_pb2, tokenizer_pb2

PROMPT = EncodedPrompt(token_ids=[1, 2], system_tokens=0, encode_us=0)
CHAT = tokenizer_pb2.EncodeRequest(
    chat=tokenizer_pb2.ChatInput(
        messages=[
            tokenizer_pb2.ChatMessage(role="system", content="Be brief."),
            tokenizer_pb2.ChatMessage(role="user", content="Hi"),
            tokenizer_pb2.ChatMessage(role="assistant", content="Hello"),
            tokenizer_pb2.ChatMessage(role="user", content="What is the capital of France?"),
        ],
        template_arguments=[tokenizer_pb2.TemplateArgument(name="enable_thinking", bool_value=True)],
        add_generation_prompt=True,
    )
)
CALL = Call(request_id="x", tenant="t", route="chat", model="", prompts=(CHAT,), prompt_field="messages", wishes=Wishes())
SAMPLING = common_pb2.SamplingParams(temperature=0.5, seed=3)
STOPPING = common_pb2.StoppingParams(max_tokens=9)
# Fields that do not split the scope, and why no answer is wrong for it.
NOT_SPLIT: dict[str, dict[str, str]] = {
    "SamplingParams": {"seed": "no client gave one: who does is answered exactly or by the model"},
    "StoppingParams": {"max_tokens": "an answer is served where it is no longer"},
    "Call": {
        "request_id": "made by the server",
        "route": "all doors ask the same of a model",
        "model": "an alias; the name that is served splits",
        "prompt_field": "for errors",
        "n": "only one answer is looked for",
        "system2_attention": "no answer to a rewritten turn is looked for",
        "search": "no answer to be searched for is looked for",
        "template_must_read": "refused where the template does not",
        "wishes": "resolved to sampling and stopping",
        "hidden_states": "with them nothing is looked for or kept",
        "reading": "how the text is taken apart behind the cache",
        "default_max_tokens": "as max_tokens",
        "truncate_prompt_tokens": "the question of a prompt that is cut is not looked for",
        "priority": "when, and not what",
        "lowest_priority": "when, and not what",
        "sees_similarity": "what is told about the answer",
        "stream": "how it is delivered",
        "timeout_s": "how long is waited",
        "label": "for the log",
        "span": "what is recorded of it",
    },
    "CachePolicy": {
        "read": "whether it is looked for",
        "write": "whether it is kept",
        "only": "whether the model may answer",
        "max_age_s": "looked at where an answer is found",
        "threshold": "looked at where an answer is found",
    },
    "ServedModel": {
        "eos_token_ids": "resolved to stopping",
        "default_temperature": "resolved to sampling",
        "default_top_k": "resolved to sampling",
        "default_top_p": "resolved to sampling",
        "default_min_p": "resolved to sampling",
        "default_typical_p": "resolved to sampling",
        "default_repetition_penalty": "resolved to sampling",
        "has_chat_template": "of the tokenizer's folder, whose hash splits",
        "template_arguments": "which may be given; those that are, split",
        "takes_tools": "of the tokenizer's folder; no answer to a request with tools is looked for",
        "tool_call_format": "how the text is taken apart behind the cache",
        "reasoning_format": "how the text is taken apart behind the cache",
        "vocab_size": "of the tokenizer",
        "max_model_len_tokens": "as max_tokens",
        "logits_width": "of the weights",
        "serves_by_priority": "when, and not what",
        "hidden_size": "no answer is of that",
    },
    "EncodeRequest": {
        "text": "no chat, which is not looked for",
        "max_tokens": "set by the gateway",
        "sampling": "resolved to ids in the sampling parameters",
        "traceparent": "set by the gateway, on a copy",
        "keep_last_tokens": "set by the gateway, on a copy, and such a question is not looked for",
    },
}


def scope(call: Call = CALL, model: ServedModel = MODEL, sampling: Any = SAMPLING, stopping: Any = STOPPING) -> Any:
    cache = AnswerCache(PromptCache(CacheConfig(redis_url=None, secret=b"0123456789abcdef")), SemanticScene().cache, "tiny")
    return cache.scope(call, model, Choice(number=0, prompt=PROMPT, prompt_index=0, sampling=sampling, stopping=stopping), 0)


@pytest.mark.parametrize("field", [*common_pb2.SamplingParams.DESCRIPTOR.fields], ids=lambda field: field.name)
def test_every_sampling_parameter_splits_the_scope_or_says_why_not(field: FieldDescriptor) -> None:
    is_same = scope(sampling=with_field(SAMPLING, field)) == scope()
    assert is_same is (field.name in NOT_SPLIT["SamplingParams"])


@pytest.mark.parametrize("field", [*common_pb2.StoppingParams.DESCRIPTOR.fields], ids=lambda field: field.name)
def test_every_stopping_parameter_splits_the_scope_or_says_why_not(field: FieldDescriptor) -> None:
    is_same = scope(stopping=with_field(STOPPING, field)) == scope()
    assert is_same is (field.name in NOT_SPLIT["StoppingParams"])


OTHER_CHAT = tokenizer_pb2.EncodeRequest(chat=tokenizer_pb2.ChatInput(messages=[tokenizer_pb2.ChatMessage(role="user", content="Hi")]))
OTHERS: dict[str, Any] = {
    "tenant": "u",
    "prompts": (OTHER_CHAT,),
    "cache": CachePolicy(salt="mine"),
    "n": 2,
    "wishes": Wishes(temperature=0),
}


@pytest.mark.parametrize("name", [one.name for one in fields(Call)])
def test_every_field_of_a_call_splits_the_scope_or_says_why_not(name: str) -> None:
    value: Any = getattr(CALL, name)
    other: Any = OTHERS.get(
        name, not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else ("x",) if value == () else "x"
    )
    assert (scope(replace(CALL, **{name: other})) == scope()) is (name in NOT_SPLIT["Call"])


@pytest.mark.parametrize("name", [one.name for one in fields(CachePolicy)])
def test_every_field_of_the_cache_policy_splits_the_scope_or_says_why_not(name: str) -> None:
    value: Any = getattr(CachePolicy(), name)
    other: Any = not value if isinstance(value, bool) else "x" if isinstance(value, str) else 1.0
    policy = replace(CachePolicy(), **{name: other})
    assert (scope(replace(CALL, cache=policy)) == scope()) is (name in NOT_SPLIT["CachePolicy"])


@pytest.mark.parametrize("name", [*ServedModel._fields] if hasattr(ServedModel, "_fields") else [one.name for one in fields(ServedModel)])
def test_every_property_of_the_model_splits_the_scope_or_says_why_not(name: str) -> None:
    value: Any = getattr(MODEL, name)
    other: Any = (
        not value if isinstance(value, bool) else value + "x" if isinstance(value, str) else (1, 2) if isinstance(value, tuple) else 5
    )
    model: Any = MODEL._replace(**{name: other}) if hasattr(MODEL, "_replace") else replace(MODEL, **{name: other})
    assert (scope(model=model) == scope()) is (name in NOT_SPLIT["ServedModel"])


def changed_chats() -> dict[str, tokenizer_pb2.EncodeRequest]:
    """The chat with one thing changed each: every field of every message in it but what the last turn says."""
    changed = {}
    for index, message in enumerate(CHAT.chat.messages):
        for field in message.DESCRIPTOR.fields:
            other = tokenizer_pb2.EncodeRequest()
            other.CopyFrom(CHAT)
            if field.name == "tool_calls":
                other.chat.messages[index].tool_calls.add(name="f", arguments='{"x": 1}')
            else:
                setattr(other.chat.messages[index], field.name, getattr(message, field.name) + "x")
            changed[f"messages[{index}].{field.name}"] = other
    for field in tokenizer_pb2.TemplateArgument.DESCRIPTOR.fields:
        other = tokenizer_pb2.EncodeRequest()
        other.CopyFrom(CHAT)
        value = {"name": "other", "bool_value": False, "int_value": 5, "string_value": "x"}[field.name]
        setattr(other.chat.template_arguments[0], field.name, value)
        changed[f"template_arguments.{field.name}"] = other
    for field in tokenizer_pb2.ChatInput.DESCRIPTOR.fields:
        if field.name not in ("messages", "template_arguments", "tools"):
            other = tokenizer_pb2.EncodeRequest()
            other.CopyFrom(CHAT)
            setattr(other.chat, field.name, False)
            changed[field.name] = other
    for field in tokenizer_pb2.FunctionTool.DESCRIPTOR.fields:
        other = tokenizer_pb2.EncodeRequest()
        other.CopyFrom(CHAT)
        setattr(other.chat.tools.add(), field.name, "x")
        changed[f"tools.{field.name}"] = other
    fewer = tokenizer_pb2.EncodeRequest()
    fewer.CopyFrom(CHAT)
    del fewer.chat.messages[1:3]
    changed["messages"] = fewer
    return changed


@pytest.mark.parametrize("what", changed_chats())
def test_everything_in_a_chat_splits_the_scope_but_what_is_asked_last(what: str) -> None:
    is_same = scope(replace(CALL, prompts=(changed_chats()[what],))) == scope()
    assert is_same is (what == "messages[3].content")


async def test_requests_with_tools_or_their_results_are_not_looked_for() -> None:
    scene = await SemanticScene().started()
    cache = AnswerCache(PromptCache(CacheConfig(redis_url=None, secret=b"0123456789abcdef")), scene.cache, "tiny")
    with_tools = changed_chats()["tools.name"]
    with_result = tokenizer_pb2.EncodeRequest()
    with_result.CopyFrom(CHAT)
    with_result.chat.messages.add(role="tool", content="What is the capital of France?", tool_call_id="x")
    choice = Choice(number=0, prompt=PROMPT, prompt_index=0, sampling=SAMPLING, stopping=STOPPING)
    await cache.explain(CALL, MODEL, [choice])
    for chat in (with_tools, with_result):
        with pytest.raises(InvalidRequest, match="must end with what a user asks"):
            await cache.explain(replace(CALL, prompts=(chat,)), MODEL, [choice])


def test_the_question_of_a_prompt_that_is_cut_is_not_looked_for() -> None:
    assert last_question(CALL) == "What is the capital of France?"
    assert last_question(replace(CALL, truncate_prompt_tokens=5)) is None


def test_every_field_of_what_is_encoded_has_a_decision() -> None:
    names = {field.name for field in tokenizer_pb2.EncodeRequest.DESCRIPTOR.fields}
    assert names == {"chat", *NOT_SPLIT["EncodeRequest"]}
