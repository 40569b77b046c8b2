"""What clients write to have answers of a form, in OpenAI's words and in vLLM's, as a grammar of the contract."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.http.openai.structural_tags import structural_grammar
from gateway.http.openai.values import Body, Label, Text
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import common_pb2

_ANY_OBJECT = '{"type":"object"}'


class JsonSchemaFormat(Body):
    """OpenAI's `response_format.json_schema`. A schema is held whether it is `strict` or not."""

    name: Label
    description: Text | None = None
    # Its own name is taken in pydantic.
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's `response_format`, and vLLM's structural tags."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    # Of structural tags, whose inner fields have types of their own.
    structures: list[Any] | None = Field(None, fail_fast=True)
    triggers: list[Any] | None = Field(None, fail_fast=True)
    format: dict[str, Any] | None = None

    def grammar(self) -> common_pb2.Grammar | None:
        """None = any text.

        Raises:
            InvalidRequest: a schema is missing, or there where none is asked for.
        """
        if (self.json_schema is None) == (self.type == "json_schema"):
            wanted = "missing" if self.json_schema is None else f"set, and type is {self.type}"
            raise InvalidRequest(f"response_format.json_schema is {wanted}", field="response_format.json_schema")
        tag = {"structures": self.structures, "triggers": self.triggers, "format": self.format}
        given = {name: value for name, value in tag.items() if value is not None}
        if self.type == "structural_tag":
            return structural_grammar(given, "response_format")
        if given:
            field = f"response_format.{next(iter(given))}"
            raise InvalidRequest(f"{field} is set, and type is {self.type}", field=field)
        if self.type == "text":
            return None
        return _object_of(self.json_schema.schema_ if self.json_schema is not None else None)


class TextFormat(Body):
    """`text.format` of OpenAI's Responses API."""

    type: Literal["text", "json_object", "json_schema"]
    name: Label | None = None
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def grammar(self) -> common_pb2.Grammar | None:
        """None = any text.

        Raises:
            InvalidRequest: a name or a schema is missing, or something there that only a schema has.
        """
        for field in ("name", "schema"):
            value = self.name if field == "name" else self.schema_
            if (value is None) == (self.type == "json_schema"):
                wanted = "missing" if value is None else f"set, and type is {self.type}"
                raise InvalidRequest(f"text.format.{field} is {wanted}", field=f"text.format.{field}")
        return None if self.type == "text" else _object_of(self.schema_)


class StructuredOutputs(Body):
    """vLLM's `structured_outputs`: one of them."""

    # A schema, as an object or as JSON in a string.
    json_: dict[str, Any] | Text | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(min_length=1, fail_fast=True)] | None = None
    # In Lark's syntax.
    grammar: Text | None = None
    json_object: bool | None = None
    # As an object or as JSON in a string.
    structural_tag: dict[str, Any] | Text | None = None

    def grammars(self) -> dict[str, common_pb2.Grammar]:
        """By the field that asks for it."""
        found = grammars_of(schema=self.json_, regex=self.regex, choice=self.choice, lark=self.grammar)
        if self.json_object:
            found["json_object"] = common_pb2.Grammar(json_schema=_ANY_OBJECT)
        if self.structural_tag is not None:
            found["structural_tag"] = structural_grammar(self.structural_tag, "structured_outputs.structural_tag")
        return found


def grammars_of(
    *, schema: dict[str, Any] | str | None, regex: str | None, choice: Sequence[str] | None, lark: str | None
) -> dict[str, common_pb2.Grammar]:
    """What vLLM's fields ask for, by the name of each.

    Args:
        schema: as an object or as JSON in a string.
        regex: of the whole text.
        choice: texts of which it is one.
        lark: in Lark's syntax.
    """
    found: dict[str, common_pb2.Grammar] = {}
    if schema is not None:
        found["json"] = common_pb2.Grammar(json_schema=schema if isinstance(schema, str) else _dumped(schema))
    if regex is not None:
        found["regex"] = common_pb2.Grammar(regex=regex)
    if choice is not None:
        found["choice"] = common_pb2.Grammar(lark=f"start: {' | '.join(map(json.dumps, choice))}")
    if lark is not None:
        found["grammar"] = common_pb2.Grammar(lark=lark)
    return found


def grammar_of(found: Mapping[str, common_pb2.Grammar | None]) -> tuple[str, common_pb2.Grammar] | None:
    """The one that is asked for, with its field; None = none is.

    Args:
        found: by field; None = it is not set.

    Raises:
        InvalidRequest: there are two.
    """
    wanted = {field: grammar for field, grammar in found.items() if grammar is not None}
    if len(wanted) > 1:
        first, second, *_ = wanted
        raise InvalidRequest(f"{first} and {second} are both set, an answer has one form", field=second)
    return next(iter(wanted.items()), None)


def _object_of(schema: dict[str, Any] | None) -> common_pb2.Grammar:
    return common_pb2.Grammar(json_schema=_ANY_OBJECT if schema is None else _dumped(schema))


def _dumped(schema: dict[str, Any]) -> str:
    # The order of properties is that in which they are answered.
    return json.dumps(schema, separators=(",", ":"))
