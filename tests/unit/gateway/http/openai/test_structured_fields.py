"""What OpenAI's and vLLM's fields for answers of a form come to, and what of them is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.flow.limits import Limits
from gateway.http.openai.chat_body import ChatBody
from gateway.http.openai.completion_body import CompletionBody
from gateway.http.openai.parsing import parse_body
from triserve.rpc.errors import Internal, InvalidRequest
from triserve.v1 import common_pb2

LIMITS = Limits()
HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"$ref": "#/x"}}, "required": ["z"]}
DUMPED = json.dumps(SCHEMA, separators=(",", ":"))
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}


def chat(**fields: Any) -> ChatBody:
    return parse_body(ChatBody, {"messages": HELLO, **fields}, LIMITS)


@pytest.mark.parametrize(
    ("fields", "field", "grammar"),
    [
        ({"response_format": JSON_SCHEMA}, "response_format", common_pb2.Grammar(json_schema=DUMPED)),
        ({"response_format": {"type": "json_object"}}, "response_format", common_pb2.Grammar(json_schema='{"type":"object"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format",
            common_pb2.Grammar(json_schema='{"type":"object"}'),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json", common_pb2.Grammar(json_schema=DUMPED)),
        ({"structured_outputs": {"json": DUMPED}}, "structured_outputs.json", common_pb2.Grammar(json_schema=DUMPED)),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex", common_pb2.Grammar(regex="a+")),
        (
            {"structured_outputs": {"choice": ["yes", 'n"o']}},
            "structured_outputs.choice",
            common_pb2.Grammar(lark='start: "yes" | "n\\"o"'),
        ),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "structured_outputs.grammar", common_pb2.Grammar(lark='start: "a"')),
        (
            {"structured_outputs": {"json_object": True}},
            "structured_outputs.json_object",
            common_pb2.Grammar(json_schema='{"type":"object"}'),
        ),
        ({"guided_json": SCHEMA}, "guided_json", common_pb2.Grammar(json_schema=DUMPED)),
        ({"guided_regex": "a+"}, "guided_regex", common_pb2.Grammar(regex="a+")),
        ({"guided_choice": ["a", "b"]}, "guided_choice", common_pb2.Grammar(lark='start: "a" | "b"')),
        ({"guided_grammar": 'start: "a"'}, "guided_grammar", common_pb2.Grammar(lark='start: "a"')),
    ],
    ids=lambda value: str(value)[:50],
)
def test_each_field_is_a_grammar_under_its_own_name(fields: dict[str, Any], field: str, grammar: common_pb2.Grammar) -> None:
    wishes = chat(**fields).wishes()
    assert (wishes.grammar, wishes.spelled("grammar")) == (grammar, field)
    assert parse_body(CompletionBody, {"prompt": "a", **fields}, LIMITS).wishes().grammar == grammar


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False}},
    ],
    ids=str,
)
def test_what_asks_for_any_text_is_no_grammar(fields: dict[str, Any]) -> None:
    assert chat(**fields).wishes().grammar is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": "x"}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "n"}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "more": 1}}, "response_format.more"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": 3}, "guided_regex"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs.json_object"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields).wishes()
    assert caught.value.field == field


def test_a_stages_error_about_the_grammar_is_in_the_clients_words() -> None:
    wishes = chat(guided_regex="(").wishes()
    error = wishes.reworded(InvalidRequest("grammar cannot be held: unclosed group", field="grammar"))
    assert (error.message, error.field) == ("guided_regex cannot be held: unclosed group", "guided_regex")
    for other in (InvalidRequest("top_k is 0", field="top_k"), Internal("grammar")):
        assert wishes.reworded(other) is other
