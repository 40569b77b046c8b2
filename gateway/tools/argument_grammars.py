"""What the arguments of a tool call must be, as grammars: JSON by the tool's schema, or the same as Python writes a call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

Schema: TypeAlias = dict[str, Any]

# JSON in one line, with a space behind commas and colons or without, as all that is of a form.
_ONE_LINE = {"whitespace_flexible": False, "item_separator": r",\x20?", "key_separator": r":\x20?"}
# With these a schema says of its own which properties there may be.
_COMPOSED = ("$ref", "allOf", "anyOf", "oneOf", "patternProperties", "unevaluatedProperties")
# What a schema says of an object as a whole, beside its properties one by one.
_OF_ALL = (
    *_COMPOSED,
    "const",
    "dependentRequired",
    "dependentSchemas",
    "enum",
    "if",
    "maxProperties",
    "minProperties",
    "not",
    "propertyNames",
)
_DEFINITIONS = ("$defs", "definitions")
_PYTHON_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_PYTHON_FUNCTION = re.compile(r"[A-Za-z0-9_.]+")
# Values that Python writes in its own way, where nothing else can stand.
_PYTHON_VALUES = {"boolean": '"True" | "False"', "null": '"None"'}


class CannotHold(Exception):
    """No grammar can hold an answer to a tool; says why, for the client."""


class OfferedTool(NamedTuple):
    """A tool that may be called."""

    name: str
    # JSON Schema of its arguments, an object, as JSON; None = it takes none.
    parameters: str | None = None
    # Whether a schema of which something cannot be held is refused; if not, that is left out.
    is_strict: bool = False


def quoted(text: str) -> str:
    """A literal in Lark's syntax."""
    return json.dumps(text, ensure_ascii=False)


def in_json(schema: Schema | None) -> str:
    """The expression of JSON that a schema allows; None = any object."""
    return f"%json {json.dumps(_guided({'type': 'object'}) if schema is None else schema)}"


def in_one_line(schema: Schema) -> str:
    """The expression of JSON that a client's schema allows."""
    return in_json(_guided(schema))


def argument_schema(tool: OfferedTool) -> Schema:
    """The schema of a call's arguments.

    Properties that it does not list are left out where it lists some: a model that is held to a form may not go on inventing them.
    """
    given: Schema = {"properties": {}} if tool.parameters is None else json.loads(tool.parameters)
    if "properties" in given and not any(key in given for key in _COMPOSED):
        given = {"additionalProperties": False, **given}
    return _guided({"type": "object", **given}, lenient=not tool.is_strict)


def call_schema(name: str, key: str, arguments: Schema | None) -> Schema:
    """The schema of a call that is an object.

    Args:
        name: of the tool.
        key: of the arguments.
        arguments: their schema; None = any object.
    """
    inner: Schema = {"type": "object"} if arguments is None else {**arguments}
    # References are from the root, where definitions go with them.
    defined = {part: inner.pop(part) for part in _DEFINITIONS if part in inner}
    entries: Schema = {"name": {"const": name}, key: inner}
    whole = {**defined, "type": "object", "properties": entries, "required": [*entries], "additionalProperties": False}
    return _guided(whole, lenient=inner.pop("x-guidance", {}).get("lenient", False))


def call_in_python(number: int, tool: OfferedTool, schema: Schema | None) -> list[str]:
    """The rule `call_N` of a call as Python writes it, `f(a=1, b="x")`, with all that it refers to. Arguments come in the schema's order.

    Args:
        number: N.
        tool: that is called.
        schema: of its arguments; None = any.

    Raises:
        CannotHold: the tool's name is none of Python's, or the schema asks for what such a call cannot say.
    """
    if _PYTHON_FUNCTION.fullmatch(tool.name) is None:
        raise CannotHold(f"the model calls functions as Python does, where {tool.name!r} is no name")
    if schema is None:
        return [
            f'call_{number}: {quoted(tool.name + "(")} (any_{number} (", " any_{number})*)? ")"',
            f"any_{number}: /{_PYTHON_NAME.pattern}=/ value_{number}",
            f"value_{number}: {in_json(_guided({}))}",
        ]
    rules = [f"call_{number}: {quoted(tool.name + '(')} first_{number}_0 {quoted(')')}"]
    entries = _entries(tool, schema)
    for place, (name, value, is_required) in enumerate(entries):
        this, behind = f"{number}_{place}", f"{number}_{place + 1}"
        rules += [
            f"entry_{this}: {quoted(name + '=')} value_{this}",
            f"value_{this}: {_python_value(value, schema)}",
            # Of what follows nothing may be written yet, or something is.
            f"first_{this}: entry_{this} later_{behind}{'' if is_required else f' | first_{behind}'}",
            f"later_{this}: {'' if is_required else '('}{quoted(', ')} entry_{this}{'' if is_required else ')?'} later_{behind}",
        ]
    return [*rules, f'first_{number}_{len(entries)}: ""', f'later_{number}_{len(entries)}: ""']


def _entries(tool: OfferedTool, schema: Schema) -> list[tuple[str, Any, bool]]:
    """Arguments that a call has by name: the name, what its value must be, and whether it must be there."""
    if tool.is_strict and (unheld := next((key for key in _OF_ALL if key in schema), None)):
        raise CannotHold(f"{unheld} in the parameters of {tool.name} cannot be held where calls are written as Python does")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise CannotHold(f"the parameters of {tool.name} are no schema of an object")
    properties = {**properties, **{name: {} for name in required if name not in properties}}
    entries = []
    for name, value in properties.items():
        if _PYTHON_NAME.fullmatch(name) is not None:
            entries.append((name, value, name in required))
        elif name in required:
            raise CannotHold(f"{name!r} in the parameters of {tool.name} is no name where calls are written as Python does")
    return entries


def _python_value(value: Any, schema: Mapping[str, Any]) -> str:
    if not isinstance(value, dict):
        value = {} if value is True else {"not": {}}
    if value.keys() & {"type", "enum", "const"} == {"type"} and value["type"] in ("boolean", "null"):
        return _PYTHON_VALUES[value["type"]]
    defined = {key: schema[key] for key in _DEFINITIONS if key in schema}
    return in_json({**value, **defined, "x-guidance": schema["x-guidance"]})


def _guided(schema: Schema, *, lenient: bool = False) -> Schema:
    """With how llguidance is to read it."""
    return {**schema, "x-guidance": {**_ONE_LINE, "lenient": lenient}}
