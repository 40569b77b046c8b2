"""Puts the document together: schemas of bodies from their types, ranges from the contract, answers as they are written down."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from pydantic.json_schema import models_json_schema

from gateway.flow.resolve import TOP_P
from gateway.flow.search.rules import LENGTH_PENALTY, PENALTY_ALPHA
from gateway.http.openai.values import WITHOUT_EFFECT, Body
from gateway.http.openapi.answers import ANSWERS, Schema, ref
from gateway.http.openapi.operations import OPERATIONS, Operation
from triserve.rpc import limits as contract

_JSON, _EVENTS = "application/json", "text/event-stream"
# Of fields that the contract does not have; and of top_p, whose range is wider for clients.
_OF_CLIENTS = {"top_p": TOP_P, "length_penalty": LENGTH_PENALTY, "penalty_alpha": PENALTY_ALPHA}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document (3.1). The same for every gateway of this version; not to be changed."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Triserve",
            "version": metadata.version("triserve"),
            "description": (
                "Every path is served with and without /v1, and with and without a slash at its end."
                " /v1/capabilities names the fields that are refused, with the values that are let through as they ask for nothing."
            ),
        },
        "paths": paths,
        "components": {
            "schemas": {**_bodies(), **ANSWERS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        # None where the gateway has no keys.
        "security": [{"bearer": []}, {"header": []}, {}],
    }


def ranges(names: Mapping[str, Any]) -> dict[str, contract.Range]:
    """Ranges of the numbers among some fields that have one, in the contract or here."""
    found = {name: _OF_CLIENTS.get(name, getattr(contract, name.upper(), None)) for name in names}
    return {name: one for name, one in found.items() if isinstance(one, contract.Range)}


def _described(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": ref(operation.answer)}}
    if operation.streams:
        # OpenAPI 3.1 cannot say what an event holds.
        content[_EVENTS] = {}
    said: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "responses": {
            "200": {"description": "The answer", "content": content},
            "default": {"description": "Why there is none", "content": {_JSON: {"schema": ref(operation.error)}}},
        },
    }
    if operation.body is not None:
        said["requestBody"] = {"required": True, "content": {_JSON: {"schema": ref(operation.body.__name__)}}}
    if "{name}" in operation.path:
        said["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.is_public:
        said["security"] = []
    return said


def _bodies() -> dict[str, Schema]:
    kinds: dict[str, type[Body]] = {one.body.__name__: one.body for one in OPERATIONS if one.body is not None}
    _, made = models_json_schema([(kind, "validation") for kind in kinds.values()], ref_template="#/components/schemas/{model}")
    schemas: dict[str, Schema] = made["$defs"]
    for schema in schemas.values():
        schema.pop("title", None)
        properties: dict[str, Schema] = schema.get("properties", {})
        allowed = ranges(properties)
        for name, field in properties.items():
            field.pop("title", None)
            why = field.pop(WITHOUT_EFFECT, None)
            if why is not None:
                field["description"] = f"Without effect: {why}"
            if name in allowed:
                _bound(field, allowed[name])
    return schemas


def _bound(field: Schema, allowed: contract.Range) -> None:
    for kind in field.get("anyOf", [field]):
        if kind.get("type") in ("number", "integer"):
            kind["exclusiveMinimum" if allowed.excludes_low else "minimum"] = allowed.low
            kind["maximum"] = allowed.high
