"""Tools in OpenAI's request bodies: what may be called, whether it must be, and calls that were made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, PlainValidator, model_validator
from typing_extensions import TypedDict

from gateway.flow.call import AnswerReading
from gateway.http.openai.values import Body, Text, unicode_text, without_effect
from gateway.tools.argument_grammars import OfferedTool
from triserve.rpc import limits as contract
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import tokenizer_pb2

TOOL_MODES = ("none", "auto", "required")


class NestedBody(Body):
    """An object within a body: null is as good as absent."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


def object_as_json(value: object) -> str:
    """An object as JSON, its names in the order in which they came."""
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    return unicode_text(json.dumps(value, ensure_ascii=False, allow_nan=False))


# An object, as JSON.
JsonObject = Annotated[str, PlainValidator(object_as_json, json_schema_input_type=dict[str, Any])]
FunctionName = Annotated[str, Field(pattern=rf"^[A-Za-z0-9_.:/-]{{1,{contract.MAX_TOOL_NAME_CHARS}}}$")]


CalledName = Annotated[Text, Field(min_length=1, max_length=contract.MAX_TOOL_NAME_CHARS)]


class Function(NestedBody):
    """A function that the model may call."""

    name: FunctionName
    description: Text | None = None
    # The JSON Schema as JSON.
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(NestedBody):
    """A tool; functions are the only ones."""

    type: Literal["function"]
    function: Function


class CalledFunction(NestedBody):
    """What an assistant has called. Arguments are text: a model may have written no JSON."""

    name: CalledName
    arguments: Text = ""
    # As OpenAI's client leaves them where it has parsed an answer.
    parsed_arguments: Any = without_effect("the arguments say it")


class AssistantCall(NestedBody):
    """A tool call in an assistant's turn."""

    id: Annotated[Text, Field(max_length=contract.MAX_TOOL_CALL_ID_CHARS)]
    type: Literal["function"] = "function"
    function: CalledFunction
    # What clients leave in calls that they put together from a stream.
    index: int | None = None


class Choice(NamedTuple):
    """What the client wants of its tools."""

    mode: str
    # The one that must be called; None = any.
    name: str | None = None


def _choice_of(value: object) -> Choice:
    if isinstance(value, str) and value in TOOL_MODES:
        return Choice(value)
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(function := value.get("function"), dict):
        name = function.get("name")
        if isinstance(name, str) and value.keys() == {"type", "function"} and function.keys() == {"name"}:
            return Choice("named", name)
    raise ValueError(f"must be one of {', '.join(TOOL_MODES)}, or an object that names a function")


Tools = Annotated[list[Tool], Field(fail_fast=True)]


class _NamedFunction(TypedDict):
    name: str


class _NamedTool(TypedDict):
    type: Literal["function"]
    function: _NamedFunction


ToolChoice = Annotated[Choice, PlainValidator(_choice_of, json_schema_input_type=Literal["none", "auto", "required"] | _NamedTool)]
ToolCalls = Annotated[list[AssistantCall], Field(fail_fast=True)]
ToolCallId = Annotated[str, Field(max_length=contract.MAX_TOOL_CALL_ID_CHARS), AfterValidator(unicode_text)]


class ToolUse(NamedTuple):
    """What a request says of tools, checked."""

    functions: tuple[Function, ...]
    reading: AnswerReading


def tool_use(functions: Sequence[Function], choice: Choice | None, parallel: bool | None, *, name_field: str = "function.name") -> ToolUse:
    """The tools the model is given, and how its answer is read. A client that wants no call has given it none.

    Args:
        functions: that may be called.
        choice: what is wanted of them; None = what the model likes.
        parallel: whether there may be more than one call; None = there may.
        name_field: where a tool has its name, for errors.

    Raises:
        InvalidRequest: fields contradict each other; names the field.
    """
    choice = choice or Choice("auto")
    seen: set[str] = set()
    for index, function in enumerate(functions):
        if function.name in seen:
            raise InvalidRequest(f"tools has the function {function.name!r} twice", field=f"tools[{index}].{name_field}")
        seen.add(function.name)
    given = tuple(functions) if choice.mode != "none" else ()
    offered = [OfferedTool(function.name, function.parameters, bool(function.strict)) for function in given]
    must_call = choice.mode in ("required", "named")
    return ToolUse(given, AnswerReading.of_tools(offered, must_call=must_call, name=choice.name, parallel=parallel is not False))


class MayUseTools:
    """Mixed into bodies that may have tools."""

    @property
    def asked_tools(self) -> ToolUse:
        """The tools the model is given, and how its answer is read.

        Raises:
            InvalidRequest: see `tool_use`.
        """
        raise NotImplementedError

    @property
    def reading(self) -> AnswerReading:
        """How the answer is to be taken apart.

        Raises:
            InvalidRequest: see `tool_use`.
        """
        return self.asked_tools.reading


def tool_inputs(functions: Sequence[Function]) -> list[tokenizer_pb2.FunctionTool]:
    """Tools in the contract's form."""
    return [
        tokenizer_pb2.FunctionTool(name=function.name, description=function.description, parameters_json=function.parameters)
        for function in functions
    ]


def call_inputs(calls: Sequence[AssistantCall]) -> list[tokenizer_pb2.ToolCall]:
    """Calls in the contract's form."""
    return [tokenizer_pb2.ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments) for call in calls]


def check_call_counts(messages: object) -> None:
    """Refuses a turn with too many calls, before anything is made of them.

    Raises:
        InvalidRequest: naming the field and the limit.
    """
    if not isinstance(messages, list):
        return
    for index, message in enumerate(messages):
        calls = message.get("tool_calls") if isinstance(message, Mapping) else None
        if isinstance(calls, list) and len(calls) > contract.MAX_TOOL_CALLS:
            where = f"messages[{index}].tool_calls"
            raise InvalidRequest(f"{where} has {len(calls)} calls, the limit is {contract.MAX_TOOL_CALLS}", field=where)
