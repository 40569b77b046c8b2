"""Schemas: what cannot be held is refused by keyword and place, what asks for nothing is left out, and the rest means what it did."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sampler_svc.grammar_check.errors import CannotHold
from sampler_svc.grammar_check.json_schema import REFUSED, held_schema

DRAFT = {number: f"http://json-schema.org/draft-0{number}/schema#" for number in (4, 6, 7)}
ANY: dict[str, Any] = {}


def held(schema: Any) -> Any:
    return held_schema(json.dumps(schema))


def refusal(schema: Any) -> str:
    with pytest.raises(CannotHold) as caught:
        held(schema)
    assert len(caught.value.why) < 200
    return caught.value.why


# Of each keyword of each draft that is refused: a schema that asks for something by it, and one that does not.
ASKS: dict[str, tuple[Any, ...]] = {
    "not": ({"not": {}}, {"not": {"type": "null"}}),
    "if": ({"if": {"type": "string"}, "then": {"minLength": 2}}, {"if": {}, "else": False}),
    "contains": ({"contains": {"type": "string"}}, {"contains": {}, "minContains": 2}),
    "uniqueItems": ({"uniqueItems": True}, {"uniqueItems": True, "maxItems": 2}),
    "propertyNames": ({"propertyNames": {"pattern": "^a"}}, {"propertyNames": False}),
    "dependencies": ({"dependencies": {"a": ["b"]}}, {"dependencies": {"a": {"minProperties": 2}}}),
    "dependentRequired": ({"dependentRequired": {"a": ["b"]}},),
    "dependentSchemas": ({"dependentSchemas": {"a": False}},),
    "unevaluatedItems": ({"unevaluatedItems": False}, {"unevaluatedItems": {"type": "null"}}),
    "unevaluatedProperties": ({"unevaluatedProperties": False},),
    "$dynamicRef": ({"$dynamicRef": "#node"},),
    "$recursiveRef": ({"$recursiveRef": "#"},),
    "disallow": ({"disallow": "string"},),
    "divisibleBy": ({"divisibleBy": 2},),
    "extends": ({"extends": {}},),
}
ASKS_NOTHING = [
    {"if": {"type": "string"}},
    {"then": False, "else": False},
    {"uniqueItems": False},
    {"dependencies": {}, "dependentRequired": {}, "dependentSchemas": {}},
    {"propertyNames": {"type": "string"}},
    {"propertyNames": {}, "unevaluatedProperties": {}, "unevaluatedItems": True},
    {"minContains": 0, "maxContains": 3},
    {
        "title": "T",
        "description": "d",
        "default": 1,
        "examples": [1],
        "deprecated": True,
        "readOnly": True,
        "writeOnly": True,
        "$comment": "c",
    },
    {"contentMediaType": "text/html", "contentEncoding": "base64", "contentSchema": False},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "$vocabulary": {}},
    {"$anchor": "a", "$dynamicAnchor": "b", "$defs": {"unused": {"not": {}}}},
    {"x-guidance": {"lenient": True}, "nullable": True, "discriminator": {"propertyName": "k"}, "whatever": [1]},
    {"format": "password"},
]


def test_each_keyword_that_is_refused_has_an_example_here() -> None:
    assert ASKS.keys() == REFUSED.keys()


@pytest.mark.parametrize(("keyword", "schema"), [(key, one) for key, many in ASKS.items() for one in many], ids=str)
@pytest.mark.parametrize("draft", [None, DRAFT[4], DRAFT[7]])
def test_what_cannot_be_held_is_refused_by_keyword_and_place_whatever_the_draft(keyword: str, schema: Any, draft: str | None) -> None:
    root = {"$schema": draft} if draft is not None else {}
    assert refusal({**schema, **root}) == f"{keyword} is not supported, at #"
    assert refusal({"properties": {"a/b": {"items": schema}}, **root}).endswith(f"{keyword} is not supported, at #/properties/a~1b/items")


@pytest.mark.parametrize("schema", ASKS_NOTHING, ids=str)
def test_what_asks_for_nothing_is_left_out(schema: Any) -> None:
    assert held(schema) == {}
    assert held({"items": schema}) == {"items": {}}


def test_an_id_of_the_whole_is_left_out() -> None:
    assert held({"$id": "https://example.com/s", "id": "s", "type": "null"}) == {"type": "null"}


@pytest.mark.parametrize(
    ("where", "place"),
    [
        (lambda bad: {"properties": {"x": bad}}, "#/properties/x"),
        (lambda bad: {"patternProperties": {"^x": bad}}, "#/patternProperties/^x"),
        (lambda bad: {"additionalProperties": bad}, "#/additionalProperties"),
        (lambda bad: {"items": bad}, "#/items"),
        (lambda bad: {"items": [ANY, bad]}, "#/items/1"),
        (lambda bad: {"items": [ANY], "additionalItems": bad}, "#/additionalItems"),
        (lambda bad: {"prefixItems": [bad]}, "#/prefixItems/0"),
        (lambda bad: {"allOf": [ANY, bad]}, "#/allOf/1"),
        (lambda bad: {"anyOf": [bad]}, "#/anyOf/0"),
        (lambda bad: {"oneOf": [bad]}, "#/oneOf/0"),
        (lambda bad: {"$ref": "#/$defs/x", "$defs": {"x": bad}}, "#/$defs/x"),
        (lambda bad: {"$ref": "#/definitions/x", "definitions": {"x": bad}}, "#/definitions/x"),
        (lambda bad: {"items": {"$ref": "#/strange/0"}, "strange": [bad]}, "#/strange/0"),
    ],
)
def test_every_place_where_a_schema_may_be_is_looked_at(where: Any, place: str) -> None:
    assert refusal(where({"not": {}})) == f"not is not supported, at {place}"
    assert refusal(where({"format": "colour"})) == f"format 'colour' is not supported, at {place}"
    assert refusal(where(3)) == f"{place} is no schema: it is neither an object nor a boolean"


def test_names_of_properties_are_no_keywords() -> None:
    schema = {"properties": {"not": {"type": "string"}, "if": {}, "format": {"type": "integer"}}, "required": ["not"]}
    assert held(schema) == schema
    assert held({"const": {"not": {}, "format": "x"}}) == {"const": {"not": {}, "format": "x"}}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "any"}, "type 'any' is none of JSON's"),
        ({"type": ["string", 3]}, "type '3' is none of JSON's"),
        ({"type": []}, "type is an empty list"),
        ({"minLength": "3"}, "minLength is no whole number"),
        ({"maxItems": -1}, "maxItems is no whole number"),
        ({"maxProperties": 1.5}, "maxProperties is no whole number"),
        ({"minimum": "0"}, "minimum is no number"),
        ({"minimum": None}, "minimum is no number"),
        ({"minimum": 2**53 + 2}, "minimum is no number from -2^53 to 2^53"),
        ({"exclusiveMaximum": -(2**60)}, "exclusiveMaximum is no number from -2^53 to 2^53"),
        ({"exclusiveMinimum": True, "minimum": 1}, "exclusiveMinimum is no number"),
        ({"multipleOf": 0}, "multipleOf is not above 0"),
        ({"pattern": 3}, "pattern is no string"),
        ({"format": 3}, "format is no string"),
        ({"required": "a"}, "required is no list of names"),
        ({"required": True}, "required is no list of names"),
        ({"properties": []}, "properties is no object"),
        ({"prefixItems": {}}, "prefixItems is no list"),
        ({"enum": []}, "enum is no list with an entry"),
        ({"anyOf": {}}, "anyOf is no list with an entry"),
        ({"allOf": []}, "allOf is no list with an entry"),
        ({"const": 2**53 + 1}, "a number is beyond 2^53, at #/const"),
        ({"enum": [1, [{"a": 1e300}]]}, "a number is beyond 2^53, at #/enum"),
        ({"enum": ["a\u0001"]}, "a text has a control character, at #/enum"),
        ({"const": "\x7f"}, "a text has a control character, at #/const"),
        ({"minProperties": 2}, "minProperties is not supported beyond one more than are required"),
        ({"minProperties": 3, "required": ["a", "a"]}, "minProperties is not supported beyond"),
        ({"$ref": "https://example.com/schema"}, "$ref 'https://example.com/schema' is no reference like #/$defs/name"),
        ({"$ref": "#anchor"}, "$ref '#anchor' is no reference like"),
        ({"$ref": 3}, "$ref '3' is no reference"),
        ({"$ref": "#/$defs/a"}, "$ref '#/$defs/a' refers to nothing"),
        ({"$ref": "#/$defs/1", "$defs": [ANY]}, "refers to nothing"),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "$schema 'http://json-schema.org/draft-03/schema#' is none of the drafts"),
        ({"$schema": 7}, "$schema '7' is none of the drafts"),
        ({"items": {"$id": "https://example.com/item"}}, "$id is supported at the root alone, it is at #/items"),
        ({"$schema": DRAFT[4], "items": {"id": "https://example.com/item"}}, "id is supported at the root alone"),
        ({"$schema": DRAFT[7], "prefixItems": [ANY]}, "prefixItems is not of draft 7"),
    ],
    ids=str,
)
def test_what_is_malformed_or_inexact_is_refused_and_says_why(schema: Any, says: str) -> None:
    assert says in refusal(schema)


@pytest.mark.parametrize("text", ["[1", "NaN", '{"const": Infinity}', "[" * 100_000, "3", '"a"', "[]", '{"const": ' + "9" * 5000 + "}"])
def test_what_is_no_json_schema_is_refused(text: str) -> None:
    with pytest.raises(CannotHold, match="no JSON schema"):
        held_schema(text)


def test_booleans_are_schemas() -> None:
    assert held(True) is True and held(False) is False
    assert held({"items": False, "properties": {"a": True}}) == {"items": False, "properties": {"a": True}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def test_schemas_within_schemas_end_somewhere() -> None:
    assert held(nested(50)) == nested(50)
    assert "nested deeper than 50" in refusal(nested(51))
    # A chain of references is as deep as any, and read without one.
    chain = {f"a{number}": {"items": {"$ref": f"#/$defs/a{number + 1}"}} for number in range(3000)}
    assert len(held({"$ref": "#/$defs/a0", "$defs": {**chain, "a3000": {}}})["$defs"]) == 3001


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"oneOf": [{"$ref": "#/$defs/a"}]}}},
        {"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"allOf": [{"allOf": [{"$ref": "#/$defs/a"}]}]}}},
    ],
    ids=str,
)
def test_a_value_that_fits_if_it_fits_is_refused(schema: Any) -> None:
    assert "refers to itself" in refusal(schema)


def test_schemas_that_refer_to_themselves_for_other_values_are_held() -> None:
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}
    again = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/d0"}}}}
    assert held(tree) == {**again, "$defs": {"d0": again}}


def test_references_are_followed_through_escapes() -> None:
    schema = {"$ref": "#/$defs/a~1b~0c%20d", "$defs": {"a/b~c d": {"type": "null"}}}
    assert held(schema) == {"$ref": "#/$defs/d0", "$defs": {"d0": {"type": "null"}}}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"$schema": DRAFT[4], "minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
        ({"$schema": DRAFT[4], "maximum": 1, "exclusiveMaximum": False}, {"maximum": 1}),
        ({"$schema": DRAFT[4], "exclusiveMaximum": True}, {}),
        ({"items": [{"type": "null"}], "additionalItems": False}, {"prefixItems": [{"type": "null"}], "items": False}),
        ({"items": {"type": "null"}, "additionalItems": {"not": {}}}, {"items": {"type": "null"}}),
        (
            {"$schema": DRAFT[7], "$ref": "#/definitions/a", "not": {}, "definitions": {"a": ANY}},
            {"$ref": "#/$defs/d0", "$defs": {"d0": {}}},
        ),
        ({"$ref": "#/$defs/a", "minLength": 2.0, "$defs": {"a": ANY}}, {"minLength": 2, "$ref": "#/$defs/d0", "$defs": {"d0": {}}}),
        ({"format": "int8", "allOf": [ANY]}, {"allOf": [ANY, {"minimum": -128, "maximum": 127}]}),
        ({"uniqueItems": True, "maxItems": 1}, {"maxItems": 1}),
        ({"minimum": -(2**63), "maximum": 1.8e19}, {"minimum": -(2**53), "maximum": 2**53}),
    ],
    ids=str,
)
def test_older_drafts_and_formats_are_written_in_the_newest_words(schema: Any, expected: Any) -> None:
    assert held(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"patternProperties": {"^a": ANY}, "allOf": [ANY]},
        {"patternProperties": {"^a": ANY}, "const": {"a": 1}},
        {"allOf": [{"patternProperties": {"^a": ANY}}, {"additionalProperties": False}]},
        {"properties": {"b": ANY}, "anyOf": [{"patternProperties": {"^a": ANY}}, {"type": "null"}]},
        {"properties": {"b": ANY}, "$ref": "#/$defs/p", "$defs": {"p": {"patternProperties": {"^a": ANY}}}},
        {
            "type": "object",
            "$ref": "#/$defs/q",
            "$defs": {"q": {"anyOf": [{"$ref": "#/$defs/p"}]}, "p": {"patternProperties": {"^a": ANY}}},
        },
    ],
    ids=str,
)
def test_names_by_pattern_are_refused_where_other_schemas_speak_of_the_same_object(schema: Any) -> None:
    assert "patternProperties beside other schemas of the same value is not supported" in refusal(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"patternProperties": {"^a": ANY}, "additionalProperties": False}, {"type": "null"}]},
        {"allOf": [{"items": {"patternProperties": {"^a": ANY}}}, {"minItems": 1}]},
        {"properties": {"p": {"patternProperties": {"^a": ANY}}}, "required": ["p"]},
    ],
    ids=str,
)
def test_names_by_pattern_are_held_where_none_do(schema: Any) -> None:
    assert held(schema) == schema


def animal(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": {"const": kind}, **more}, "required": ["kind"]}


def test_one_of_options_that_are_told_apart_is_any_of_them() -> None:
    assert held({"oneOf": [animal("cat"), animal("dog")]}) == {"anyOf": [animal("cat"), animal("dog")]}
    schema = {"oneOf": [{"$ref": "#/$defs/c"}, {"$ref": "#/$defs/d"}], "$defs": {"c": animal("cat"), "d": animal("dog")}}
    assert held(schema)["anyOf"] == [{"$ref": "#/$defs/d0"}, {"$ref": "#/$defs/d1"}]


def test_one_of_options_that_may_overlap_stays_what_it_is() -> None:
    for options in ([animal("cat"), animal("cat")], [{"type": "integer"}, {"type": "number"}], [{"minLength": 1}, {"maxLength": 5}]):
        assert held({"oneOf": options}) == {"oneOf": options}
    # Beside another anyOf there is no place for it.
    assert "oneOf" in held({"oneOf": [animal("cat"), animal("dog")], "anyOf": [ANY]})
