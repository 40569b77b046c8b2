"""Tools and tool calls as they come, and as chat templates know them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeAlias

from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest

# What `json.loads` makes.
Json: TypeAlias = Any


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        parameters_json: JSON Schema of its arguments; None = not said.
        parameters: the same, read; set by `read`.
    """

    name: str
    description: str | None = None
    parameters_json: str | None = None
    parameters: Json = None

    def read(self, field: str) -> Tool:
        """The tool with its parameters read.

        Raises:
            InvalidRequest: they are no JSON object, or nested too deep; names the field.
        """
        if self.parameters_json is None:
            return self
        return replace(self, parameters=read_object(self.parameters_json, f"{field}.function.parameters"))

    def variables(self) -> Json:
        """The tool as templates know it: what is not said is left out."""
        said = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": {name: value for name, value in said.items() if value is not None}}


@dataclass(frozen=True)
class ToolCall:
    """A function that the model has called.

    Attributes:
        arguments: as the model wrote them.
        entries: the same, read, where the template takes them so; None = it takes the text.
    """

    id: str
    name: str
    arguments: str
    entries: Json = None

    @property
    def num_characters(self) -> int:
        """Of all that is in it."""
        return len(self.id) + len(self.name) + len(self.arguments)

    def variables(self) -> Json:
        """The call as templates know it."""
        arguments = self.arguments if self.entries is None else self.entries
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


def read_object(text: str, field: str) -> Json:
    """The JSON object in a text.

    Raises:
        InvalidRequest: it is none, or nested too deep; names the field.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field} is not a JSON object", field=field)
    if _is_deeper(value, limits.MAX_TOOL_JSON_DEPTH):
        raise InvalidRequest(f"{field} is nested deeper than {limits.MAX_TOOL_JSON_DEPTH} levels, the limit", field=field)
    return value


def strings_in(value: Json) -> Iterator[str]:
    """Every string in it, names of entries among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)


def with_strings(value: Json, change: Callable[[str], str]) -> Json:
    """The same with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): with_strings(item, change) for name, item in value.items()}
    if isinstance(value, list):
        return [with_strings(item, change) for item in value]
    return value


def _is_deeper(value: Json, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value))


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")
