"""The input of a response: messages, calls that the model has made, their results, what it has thought; and the tools there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag
from typing_extensions import TypedDict

from gateway.http.openai.fields import MAX_SHOWN_CHARS
from gateway.http.openai.messages import Message
from gateway.http.openai.parsing import HIDDEN
from gateway.http.openai.tool_schema import (
    TOOL_MODES,
    AssistantCall,
    CalledFunction,
    Choice,
    Function,
    FunctionName,
    JsonObject,
    NestedBody,
    ToolCallId,
)
from gateway.http.openai.values import Body, Label, Text, joined_parts, without_effect

_STORED = "nothing is stored under it"
_MESSAGE = f"{HIDDEN}message"
_KINDS = ("message", "function_call", "function_call_output", "reasoning")


class _Part(TypedDict):
    type: Literal["input_text", "output_text"]
    text: str


class _Thought(TypedDict):
    type: Literal["reasoning_text", "summary_text"]
    text: str


def _parts(value: object) -> object:
    # An answer's own parts come back with what they were given with.
    return joined_parts(value, ("input_text", "output_text"), passed_over=("annotations", "logprobs", "prompt_cache_breakpoint"))


def _thoughts(value: object) -> object:
    return joined_parts(value, ("reasoning_text", "summary_text"), passed_over=())


_Content = Annotated[Text, BeforeValidator(_parts, json_schema_input_type=str | list[_Part])]
_Thoughts = Annotated[Text, BeforeValidator(_thoughts, json_schema_input_type=list[_Thought])]


class ResponseTool(NestedBody):
    """A tool; functions are the only ones."""

    type: Literal["function"]
    name: FunctionName
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    @property
    def function(self) -> Function:
        """The same as other doors have it."""
        return Function.model_construct(name=self.name, description=self.description, parameters=self.parameters, strict=self.strict)


class _NamedFunction(TypedDict):
    type: Literal["function"]
    name: str


def _choice_of(value: object) -> Choice:
    if isinstance(value, str) and value in TOOL_MODES:
        return Choice(value)
    if isinstance(value, dict) and value.keys() == {"type", "name"} and value["type"] == "function" and isinstance(value["name"], str):
        return Choice("named", value["name"])
    raise ValueError(f"must be one of {', '.join(TOOL_MODES)}, or an object that names a function")


ResponseToolChoice = Annotated[
    Choice, PlainValidator(_choice_of, json_schema_input_type=Literal["none", "auto", "required"] | _NamedFunction)
]


class InputMessage(Body):
    """One turn: a client's, or an answer as it was given."""

    role: Literal["user", "assistant", "system", "developer"]
    content: _Content
    type: Literal["message"] | None = None
    id: Label | None = without_effect(_STORED)
    status: Label | None = without_effect("a turn is what it says")
    phase: Label | None = without_effect("a turn is what it says")


class InputCall(Body):
    """A call that the model has made."""

    type: Literal["function_call"]
    call_id: ToolCallId
    name: FunctionName
    arguments: Text
    id: Label | None = without_effect(_STORED)
    status: Label | None = without_effect("a call is what it says")


class InputResult(Body):
    """What a call came to."""

    type: Literal["function_call_output"]
    call_id: ToolCallId
    output: _Content
    id: Label | None = without_effect(_STORED)
    status: Label | None = without_effect("a result is what it says")


class InputReasoning(Body):
    """What the model has thought before the items behind it. Of a summary and the thoughts themselves these count."""

    type: Literal["reasoning"]
    summary: _Thoughts | None = None
    content: _Thoughts | None = None
    encrypted_content: None = None
    id: Label | None = without_effect(_STORED)
    status: Label | None = without_effect("a thought is what it says")


def _kind_of(item: object) -> str | None:
    return HIDDEN + str(item.get("type") or "message") if isinstance(item, dict) else None


InputItem: TypeAlias = Annotated[
    Annotated[InputMessage, Tag(_MESSAGE)]
    | Annotated[InputCall, Tag(f"{HIDDEN}function_call")]
    | Annotated[InputResult, Tag(f"{HIDDEN}function_call_output")]
    | Annotated[InputReasoning, Tag(f"{HIDDEN}reasoning")],
    Discriminator(_kind_of),
]


def _items(value: object) -> object:
    """A text as the one turn of a user. Other items than these are refused by their type."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, list):
        for index, item in enumerate(value):
            kind = item.get("type") if isinstance(item, dict) else None
            if isinstance(kind, str) and kind not in _KINDS:
                raise ValueError(f"has an item of type {kind[:MAX_SHOWN_CHARS]!r} at {index}, which is not supported")
        return [_without_nulls(item) for item in value]
    return value


def _without_nulls(item: object) -> object:
    return {name: value for name, value in item.items() if value is not None} if isinstance(item, dict) else item


InputItems = Annotated[
    list[InputItem], Field(min_length=1, fail_fast=True), BeforeValidator(_items, json_schema_input_type=str | list[InputItem])
]


def turns_of(items: Sequence[InputItem]) -> list[Message]:
    """The turns that items are: what the model thought, said and called in one go is one turn."""
    turns: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, InputResult):
            turns.append({"role": "tool", "content": item.output, "tool_call_id": item.call_id})
        elif isinstance(item, InputMessage) and item.role != "assistant":
            turns.append({"role": item.role, "content": item.content})
        else:
            if not _goes_on(turns, item):
                turns.append({"role": "assistant", "content": "", "tool_calls": []})
            _add(turns[-1], item)
    return [Message(**turn) for turn in turns]


def _goes_on(turns: Sequence[dict[str, Any]], item: InputItem) -> bool:
    """Whether an item of the model's belongs to the turn before it: what it says comes before what it calls, and thoughts before both."""
    if not turns or turns[-1]["role"] != "assistant":
        return False
    latest = turns[-1]
    return isinstance(item, InputCall) or not (latest["content"] or latest["tool_calls"])


def _add(turn: dict[str, Any], item: InputItem) -> None:
    if isinstance(item, InputCall):
        function = CalledFunction(name=item.name, arguments=item.arguments)
        turn["tool_calls"] = [*turn["tool_calls"], AssistantCall(id=item.call_id, function=function)]
    elif isinstance(item, InputReasoning):
        turn["reasoning_content"] = "\n".join(one for one in (turn.get("reasoning_content"), item.content or item.summary) if one) or None
    elif isinstance(item, InputMessage):
        turn["content"] = item.content
