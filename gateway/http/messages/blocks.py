"""The blocks of a message's turns, and its tools: text, calls that the model has made, and what they came to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import BeforeValidator, PlainValidator
from typing_extensions import TypedDict

from gateway.http.openai.fields import MAX_SHOWN_CHARS
from gateway.http.openai.messages import Message
from gateway.http.openai.tool_schema import AssistantCall, CalledFunction, Choice, Function, FunctionName, JsonObject, NestedBody
from gateway.http.openai.values import Text, TextPart, joined_parts, unicode_text, without_effect
from triserve.rpc import limits as contract

_CACHE_CONTROL = "cache_control"


class TextBlock(NamedTuple):
    """Something said."""

    text: str


class CallBlock(NamedTuple):
    """A call that the model has made; its arguments as JSON."""

    id: str
    name: str
    arguments: str


class ResultBlock(NamedTuple):
    """What a call came to."""

    call_id: str
    text: str


Block: TypeAlias = TextBlock | CallBlock | ResultBlock


class _Call(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class _Result(TypedDict):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextPart]


def _texts(value: object) -> object:
    return joined_parts(value, ("text",), passed_over=(_CACHE_CONTROL,))


def _blocks(value: object) -> tuple[Block, ...]:
    """The blocks of a turn.

    Raises:
        ValueError: there is something else in it.
    """
    if isinstance(value, str):
        return (TextBlock(unicode_text(value)),)
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of blocks")
    return tuple(_block(one) for one in value)


def _block(value: object) -> Block:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind not in ("tool_use", "tool_result"):
        return TextBlock(unicode_text(str(_texts([value]))))
    if kind == "tool_use":
        _check_fields(value, ("id", "name", "input"))
        arguments = value.get("input", {})
        if not isinstance(arguments, dict):
            raise ValueError("has a tool_use block whose input is no object")
        return CallBlock(
            _label(value, "id", contract.MAX_TOOL_CALL_ID_CHARS),
            _label(value, "name", contract.MAX_TOOL_NAME_CHARS),
            unicode_text(json.dumps(arguments, ensure_ascii=False, allow_nan=False)),
        )
    _check_fields(value, ("tool_use_id", "content", "is_error"))
    text = _texts("" if value.get("content") is None else value["content"])
    if not isinstance(text, str):
        raise ValueError("has a tool_result block whose content is no text")
    if not isinstance(is_error := value.get("is_error") or False, bool):
        raise ValueError("has a tool_result block whose is_error is no boolean")
    # No chat template has another word for it.
    return ResultBlock(_label(value, "tool_use_id", contract.MAX_TOOL_CALL_ID_CHARS), unicode_text(f"Error: {text}" if is_error else text))


def _check_fields(block: dict[str, Any], names: Sequence[str]) -> None:
    for name, value in block.items():
        if name not in (*names, "type", _CACHE_CONTROL) and value is not None:
            raise ValueError(f"has a {block['type']} block with {name[:MAX_SHOWN_CHARS]!r}, which is not supported")


def _label(block: dict[str, Any], name: str, most: int) -> str:
    value = block.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise ValueError(f"has a {block['type']} block whose {name} is no text of 1 to {most} characters")
    return unicode_text(value)


SystemText = Annotated[Text, BeforeValidator(_texts, json_schema_input_type=str | list[TextPart])]
Blocks = Annotated[tuple[Block, ...], PlainValidator(_blocks, json_schema_input_type=str | list[TextPart | _Call | _Result])]


class MessageTool(NestedBody):
    """A tool of the client's."""

    name: FunctionName
    description: Text | None = None
    input_schema: JsonObject
    strict: bool | None = None
    type: Literal["custom"] | None = None
    cache_control: dict[str, Any] | None = without_effect("prefixes are found by what they hold")

    @property
    def function(self) -> Function:
        """The same as other doors have it."""
        return Function.model_construct(
            name=self.name, description=self.description, parameters=self.input_schema, strict=bool(self.strict)
        )


class ToolChoice(NestedBody):
    """What the client wants of its tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool | None = None

    @property
    def choice(self) -> Choice:
        """The same as other doors have it."""
        mode = {"any": "required", "tool": "named"}.get(self.type, self.type)
        return Choice(mode, (self.name or "") if self.type == "tool" else None)


def turns_of(role: str, blocks: Sequence[Block]) -> list[Message]:
    """The turns that blocks of one side are: a result is a turn of its own, and all else that follows each other one."""
    turns: list[Message] = []
    texts: list[str] = []
    calls: list[AssistantCall] = []

    def end_turn() -> None:
        if texts or calls:
            turns.append(Message(role=role, content="\n".join(texts), tool_calls=[*calls] or None))
        texts.clear()
        calls.clear()

    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, CallBlock):
            calls.append(AssistantCall(id=block.id, function=CalledFunction(name=block.name, arguments=block.arguments)))
        else:
            end_turn()
            turns.append(Message(role="tool", content=block.text, tool_call_id=block.call_id))
    end_turn()
    return turns
