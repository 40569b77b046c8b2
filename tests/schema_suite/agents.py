"""Schemas as agents and their libraries send them: pydantic's own, and in the style of zod, of OpenAPI and of tool servers."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AnyUrl, BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, conlist, constr


class Mood(StrEnum):
    """Of a person."""

    GLAD = "glad"
    SAD = "sad"


class Level(IntEnum):
    """Of a log."""

    LOW = 1
    HIGH = 10


class Address(BaseModel):
    """Where somebody lives."""

    street: str = Field(max_length=20)
    zip_code: constr(pattern=r"^\d{5}(-\d{4})?$")  # type: ignore[valid-type]
    country: Literal["DE", "FR", "US"] = "DE"


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=12, description="In full.")
    age: int | None = None
    height: Annotated[float, Field(gt=0, lt=3)]
    moods: list[Mood] = []
    home: Address
    others: list[Address] | None = None


class Closed(BaseModel):
    """Nothing else."""

    model_config = ConfigDict(extra="forbid")
    level: Level
    count: PositiveInt
    pair: tuple[int, bool]
    by_name: dict[str, int] = Field(default_factory=dict, max_length=2)


class Times(BaseModel):
    """Every kind."""

    model_config = ConfigDict(extra="forbid")
    day: date
    at: datetime
    clock: time
    took: timedelta


class Links(BaseModel):
    """What points elsewhere."""

    model_config = ConfigDict(extra="forbid")
    id: UUID
    url: AnyUrl
    address: IPv4Address


class Cat(BaseModel):
    """Meows."""

    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    """Barks."""

    kind: Literal["dog"]
    tricks: list[constr(max_length=5)] = Field(max_length=2)  # type: ignore[valid-type]


class Zoo(BaseModel):
    """Told apart by kind."""

    model_config = ConfigDict(extra="forbid")
    animal: Annotated[Cat | Dog, Field(discriminator="kind")]
    spare: Cat | Dog | None = None


class Tree(BaseModel):
    """Within itself."""

    model_config = ConfigDict(extra="forbid")
    value: int
    kids: list[Tree] = Field(default=[], max_length=2)


class Money(BaseModel):
    """Exact."""

    amount: Decimal
    currency: Annotated[str, Field(min_length=3, max_length=3)]


class Tags(BaseModel):
    """Each once."""

    tags: set[str]


_TYPES: list[Any] = [
    Person,
    Closed,
    Times,
    Links,
    Zoo,
    Tree,
    Money,
    Tags,
    list[Person],
    dict[str, Address],
    dict[Mood, int],
    int | str | None,
    tuple[int, ...],
    tuple[str, int, bool],
    conlist(int, min_length=1, max_length=3),
    bytes,
    Any,
    Literal["a", 1, True],
    list[list[bool]],
]
_ZOD = "https://json-schema.org/draft/2020-12/schema"
_SAFE = {"minimum": -9007199254740991, "maximum": 9007199254740991}


def _tool(**properties: Any) -> dict[str, Any]:
    """Arguments of a function, as a strict tool has them."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_WRITTEN: list[dict[str, Any]] = [
    # In the style of zod.
    {
        "$schema": _ZOD,
        "type": "object",
        "properties": {
            "id": {
                "type": "string",
                "format": "uuid",
                "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
            },
            "n": {"type": "integer", **_SAFE},
            "at": {"type": "string", "format": "date-time"},
            "tags": {"maxItems": 3, "type": "array", "items": {"type": "string", "maxLength": 6}},
        },
        "required": ["id", "n", "at", "tags"],
        "additionalProperties": False,
    },
    {
        "$schema": _ZOD,
        "type": "object",
        "propertyNames": {"type": "string"},
        "additionalProperties": {"type": "number"},
        "maxProperties": 2,
    },
    {
        "$schema": _ZOD,
        "anyOf": [
            {
                "type": "object",
                "properties": {"type": {"type": "string", "const": "a"}, "a": {"type": "string", "maxLength": 4}},
                "required": ["type", "a"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"type": {"type": "string", "const": "b"}, "b": {"type": "integer", **_SAFE}},
                "required": ["type", "b"],
                "additionalProperties": False,
            },
            {"type": "null"},
        ],
    },
    {
        "$schema": _ZOD,
        "oneOf": [_tool(k={"type": "string", "const": "x"}), _tool(k={"type": "string", "const": "y"}, z={"type": "boolean"})],
    },
    {
        "$schema": _ZOD,
        "type": "array",
        "prefixItems": [{"type": "string", "maxLength": 3}, {"type": "number"}],
        "items": {"type": "boolean"},
    },
    {
        "$schema": _ZOD,
        "allOf": [
            _tool(a={"type": "boolean"}) | {"additionalProperties": True},
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
        ],
    },
    {"$schema": _ZOD, "type": "string", "format": "email", "pattern": r"^(?!\.)[A-Za-z0-9_'+\-\.]*@[A-Za-z0-9.]+$"},
    {
        "$schema": _ZOD,
        "$ref": "#/$defs/node",
        "$defs": {"node": _tool(name={"type": "string", "maxLength": 4}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
    },
    {"$schema": _ZOD, "not": {}},
    {
        "$schema": _ZOD,
        "type": "object",
        "properties": {"kind": {"default": "x", "type": "string", "enum": ["x", "y"]}},
        "required": ["kind"],
    },
    # Tools.
    _tool(
        location={"type": "string", "description": "City and country", "maxLength": 20},
        unit={"type": ["string", "null"], "enum": ["c", "f", None]},
    ),
    _tool(
        query={"type": "string", "maxLength": 15},
        limit={"type": "integer", "minimum": 1, "maximum": 50},
        filters={
            "type": "array",
            "items": _tool(
                field={"enum": ["a", "b"]},
                op={"enum": ["eq", "gt"]},
                value={"anyOf": [{"type": "number"}, {"type": "string", "maxLength": 5}, {"type": "boolean"}]},
            ),
            "maxItems": 2,
        },
    ),
    _tool(
        path={"type": "string", "pattern": r"^(/[\w.-]+)+$", "maxLength": 25},
        content={"type": "string", "maxLength": 30},
        mode={"const": "w"},
    ),
    _tool(
        edits={
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": _tool(old={"type": "string", "maxLength": 8}, new={"type": "string", "maxLength": 8}, all={"type": "boolean"}),
        }
    ),
    _tool(
        steps={
            "type": "array",
            "maxItems": 2,
            "items": {
                "anyOf": [
                    _tool(tool={"const": "search"}, args=_tool(q={"type": "string", "maxLength": 6})),
                    _tool(tool={"const": "read"}, args=_tool(id={"type": "integer"})),
                ]
            },
        }
    ),
    _tool(
        start={"type": "string", "format": "date"},
        end={"type": "string", "format": "date"},
        guests={"type": "array", "items": {"type": "string", "format": "email"}, "maxItems": 2},
    ),
    _tool(),
    {"type": "object", "properties": {}},
    {"type": "object", "properties": {"args": {"type": "object", "additionalProperties": True}}, "required": ["args"]},
    # As generators of OpenAPI write them.
    {
        "type": "object",
        "properties": {
            "id": {"type": "integer", "format": "int64"},
            "price": {"type": "number", "format": "double"},
            "note": {"type": "string", "nullable": True, "maxLength": 5},
            "secret": {"type": "string", "format": "password", "maxLength": 5},
        },
        "required": ["id", "price"],
    },
    {
        "type": "object",
        "properties": {"data": {"type": "string", "format": "byte", "maxLength": 12}, "port": {"type": "integer", "format": "uint16"}},
        "required": ["data", "port"],
    },
    {
        "oneOf": [{"$ref": "#/components/schemas/A"}, {"$ref": "#/components/schemas/B"}],
        "discriminator": {"propertyName": "t"},
        "components": {"schemas": {"A": _tool(t={"enum": ["a"]}), "B": _tool(t={"enum": ["b", "c"]}, n={"type": "integer"})}},
    },
    {
        "type": "object",
        "properties": {"when": {"type": "string", "format": "date-time", "example": "2024-01-01T00:00:00Z"}},
        "required": ["when"],
        "xml": {"name": "x"},
        "externalDocs": {"url": "u"},
    },
    # Answers that are judged.
    _tool(
        reasoning={"type": "string", "maxLength": 40},
        score={"type": "number", "minimum": 0, "maximum": 1},
        verdict={"enum": ["pass", "fail"]},
    ),
    _tool(
        entities={
            "type": "array",
            "maxItems": 2,
            "items": _tool(
                text={"type": "string", "maxLength": 8},
                label={"enum": ["PER", "ORG", "LOC"]},
                span={"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2},
            ),
        }
    ),
    _tool(
        rows={
            "type": "array",
            "maxItems": 2,
            "items": {"type": "array", "items": {"type": ["string", "number", "null"], "maxLength": 5}, "maxItems": 3},
        }
    ),
    {
        "type": "object",
        "properties": {f"field_{number}": {"type": "boolean"} for number in range(40)},
        "required": [f"field_{number}" for number in range(40)],
        "additionalProperties": False,
    },
    {"enum": [f"category {number}" for number in range(300)]},
    {
        "type": "object",
        "properties": {"a": {"$ref": "#/definitions/b"}},
        "required": ["a"],
        "definitions": {
            "b": {"type": "array", "items": {"$ref": "#/definitions/c"}, "maxItems": 2},
            "c": {"type": "string", "maxLength": 3},
        },
    },
]


class _Mail(BaseModel):
    """Needs another package to be checked, not to be described."""

    model_config = ConfigDict(extra="forbid")
    to: str = Field(json_schema_extra={"format": "email"})


def agents() -> list[dict[str, Any]]:
    """All of them."""
    return [*(TypeAdapter(one).json_schema() for one in [*_TYPES, _Mail]), *_WRITTEN]
