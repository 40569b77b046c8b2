"""Structural tags: what they allow, in both forms in which clients write them, and what of them is refused by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.openai.structural_tags import structural_grammar
from tests.fakes.grammar_walk import Walker
from triserve.rpc.errors import InvalidRequest

CITY = {"type": "object", "properties": {"c": {"type": "string", "maxLength": 4}}, "required": ["c"], "additionalProperties": False}
LEGACY = {
    "structures": [
        {"begin": "<function=get>", "schema": CITY, "end": "</function>"},
        {"begin": "<function=put>", "schema": {"type": "object", "maxProperties": 0}, "end": "</function>"},
    ],
    "triggers": ["<function="],
}


def content(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def tag(begin: str, inner: dict[str, Any], end: str) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": inner, "end": end}


CALL = tag("<call>", {"type": "json_schema", "json_schema": CITY}, "</call>")
THINK = tag("<think>", {"type": "any_text"}, "</think>")
TRIGGERED = {"type": "triggered_tags", "triggers": ["<call>"], "tags": [CALL]}
SEPARATED = {"type": "tags_with_separator", "tags": [CALL], "separator": ", "}
PARIS = '<call>{"c":"Rome"}</call>'


@pytest.fixture(scope="module", params=[False, True], ids=["tags are text", "tags are special tokens"])
def walker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walker:
    names = ("<call>", "</call>", "<think>", "</think>", "</function>")
    return Walker(tmp_path_factory.mktemp("model"), names if request.param else ())


FORMS: list[tuple[dict[str, Any], Sequence[str], Sequence[str]]] = [
    (
        LEGACY,
        ["", "a <func", 'x<function=get>{"c": "Rome"}</function> y<function=put>{}</function>'],
        ["<function=do>", "<function=put>{}", '<function=get>{"c": 1}</function>'],
    ),
    ({"format": TRIGGERED}, ["", "a", f"a{PARIS}b{PARIS}"], ["<call>", f"{PARIS}<call>x"]),
    ({"format": {**TRIGGERED, "at_least_one": True}}, [PARIS, f"a{PARIS}b"], ["", "a"]),
    ({"format": {**TRIGGERED, "stop_after_first": True}}, ["a", f"a{PARIS}"], [f"{PARIS}b"]),
    ({"format": SEPARATED}, ["", PARIS, f"{PARIS}, {PARIS}"], [f"{PARIS}{PARIS}", "a"]),
    ({"format": {**SEPARATED, "at_least_one": True, "stop_after_first": True}}, [PARIS], ["", f"{PARIS}, {PARIS}"]),
    (
        {"format": {"type": "sequence", "elements": [THINK, TRIGGERED]}},
        ["<think>a < b</think>", f"<think></think>c{PARIS}"],
        ["a", "<think>"],
    ),
    ({"format": {"type": "sequence", "elements": [{"type": "any_text"}, CALL]}}, [f"a <b>{PARIS}"], ["a", f"{PARIS}b"]),
    ({"format": {"type": "or", "elements": [content("no/"), {"type": "regex", "pattern": "y/+"}]}}, ["no/", "y//"], ["", "y"]),
    ({"format": {"type": "json_schema", "json_schema": CITY}}, ['{"c": "ab"}'], ["{}"]),
]


@pytest.mark.parametrize(("value", "allowed", "banned"), FORMS, ids=lambda value: str(value)[:40])
def test_what_is_of_the_tags_is_allowed_and_nothing_else(
    walker: Walker, value: dict[str, Any], allowed: Sequence[str], banned: Sequence[str]
) -> None:
    for written in (value, json.dumps({"type": "structural_tag", **value})):
        grammar = structural_grammar(written, "response_format")
        assert [text for text in allowed if not walker.allows(grammar, text)] == []
        assert [text for text in banned if walker.allows(grammar, text)] == []


@settings(max_examples=20)
@given(seed=st.integers(0, 1 << 32))
def test_whatever_is_drawn_is_of_its_schema_behind_the_trigger(walker: Walker, seed: int) -> None:
    text = walker.walk(structural_grammar({"format": {**TRIGGERED, "at_least_one": True}}, "response_format"), Random(seed))
    for piece in [] if text is None else text.split("<call>")[1:]:
        jsonschema.validate(json.loads(piece.split("</call>")[0]), CITY)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("{", "f"),
        ("[]", "f"),
        ({"type": "text"}, "f"),
        ({}, "f.structures"),
        ({"structures": [{"begin": "a", "end": "b"}], "triggers": ["a"]}, "f.structures[0].schema"),
        ({"structures": LEGACY["structures"]}, "f.triggers"),
        ({"structures": LEGACY["structures"], "triggers": [""]}, "f.triggers"),
        ({"structures": LEGACY["structures"], "triggers": ["<tool"]}, "f.tags[0].begin"),
        ({"format": {"type": "qwen_xml_parameter", "json_schema": {}}}, "f.format.type"),
        ({"format": {"type": "grammar", "grammar": "root ::= x"}}, "f.format.type"),
        ({"format": {**TRIGGERED, "excludes": ["x"]}}, "f.format.excludes"),
        ({"format": {"type": "sequence", "elements": [TRIGGERED, CALL]}}, "f.format.elements[0]"),
        (
            {"format": {"type": "sequence", "elements": [{"type": "any_text"}, {"type": "json_schema", "json_schema": {}}]}},
            "f.format.elements[0]",
        ),
        ({"format": {"type": "or", "elements": []}}, "f.format.elements"),
        ({"format": {"type": "or", "elements": [content(f"<a{'b' * number}>") for number in range(17)]}}, "f.format.elements[16]"),
        ({"format": tag("<a>", {}, "</a>")}, "f.format.content.type"),
        ({"format": CALL, "structures": [1]}, "f.structures"),
    ],
)
def test_what_is_not_supported_or_wrong_is_refused_by_name(value: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        structural_grammar(value, "f")
    assert caught.value.field == field


def test_what_is_too_deep_is_refused() -> None:
    form: dict[str, Any] = content("a")
    for _ in range(40):
        form = {"type": "sequence", "elements": [form]}
    with pytest.raises(InvalidRequest, match="deeper than 16"):
        structural_grammar({"format": form}, "f")
