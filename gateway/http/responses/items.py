"""The input of a response: messages, calls that the model has made, their results, what it has thought; and the tools there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, PlainValidator, Tag
from typing_extensions import TypedDict

from gateway.http.openai.fields import MAX_SHOWN_CHARS
from gateway.http.openai.messages import Message
from gateway.http.openai.parsing import HIDDEN
from gateway.http.openai.tool_schema import (
    TOOL_MODES,
    AssistantCall,
    CalledFunction,
    CalledName,
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
    # A model that is held to nothing may have called any name.
    name: CalledName
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
    turns: list[Message | _OwnTurn] = []
    for item in items:
        if isinstance(item, InputResult):
            turns.append(Message(role="tool", content=item.output, tool_call_id=item.call_id))
        elif isinstance(item, InputMessage) and item.role != "assistant":
            turns.append(Message(role=item.role, content=item.content))
        else:
            latest = turns[-1] if turns else None
            if not isinstance(latest, _OwnTurn) or not latest.goes_on_with(item):
                latest = _OwnTurn()
                turns.append(latest)
            latest.add(item)
    return [turn.message() if isinstance(turn, _OwnTurn) else turn for turn in turns]


class _OwnTurn:
    """A turn of the model's, as its items are gathered."""

    def __init__(self) -> None:
        self._thoughts: list[str] = []
        self._text = ""
        self._calls: list[AssistantCall] = []

    def goes_on_with(self, item: InputItem) -> bool:
        """Whether an item belongs to the turn: what a model says comes before what it calls, and thoughts before both."""
        return isinstance(item, InputCall) or not (self._text or self._calls)

    def add(self, item: InputItem) -> None:
        """Takes an item in."""
        if isinstance(item, InputCall):
            self._calls.append(AssistantCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments)))
        elif isinstance(item, InputReasoning):
            self._thoughts.append(item.content or item.summary or "")
        elif isinstance(item, InputMessage):
            self._text = item.content

    def message(self) -> Message:
        """All of it."""
        thoughts = "\n".join(thought for thought in self._thoughts if thought)
        return Message(role="assistant", content=self._text, tool_calls=self._calls or None, reasoning_content=thoughts or None)
