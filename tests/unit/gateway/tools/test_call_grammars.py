"""Grammars of calls: whatever is drawn under one, its format's reader finds the calls, of tools that there are and with arguments that they take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tools.argument_grammars import CannotHold, OfferedTool
from gateway.tools.call_formats import FORMATS
from gateway.tools.call_grammars import Demand, Rules, answer_rule, start_rule
from tests.fakes.grammar_walk import Walker
from tests.fakes.tool_answers import WRITERS, WrittenCall, form_of, heard_in
from triserve.rpc import limits as contract
from triserve.v1 import common_pb2

SCHEMAS: Mapping[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 6},
            "units": {"enum": ["C", "F"]},
            "days": {"type": "integer", "minimum": 0, "maximum": 9},
            "now": {"type": "boolean"},
        },
        "required": ["city", "now"],
    },
    "search": {
        "type": "object",
        "properties": {"words": {"type": "array", "items": {"$ref": "#/$defs/word"}, "maxItems": 2}, "deep": {"type": ["null", "number"]}},
        "$defs": {"word": {"type": "string", "maxLength": 3}},
    },
    "math.add": {"type": "object", "maxProperties": 0},
}
TOOLS = tuple(
    OfferedTool(name, json.dumps(schema) if "properties" in schema else None, name == "get_weather") for name, schema in SCHEMAS.items()
)
TEXT = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"], "additionalProperties": False}
THINK = ("<think>", "</think>")
DEMANDS = {
    "must": Demand(TOOLS, must_call=True),
    "must one": Demand(TOOLS, must_call=True, parallel=False),
    "may": Demand(TOOLS),
    "may one": Demand(TOOLS, parallel=False),
    "call or text": Demand(TOOLS, has_text=True),
}


def grammar_of(name: str | None, demand: Demand, start: str = "start: answer") -> common_pb2.Grammar:
    form = FORMATS[name] if name is not None else None
    lark = f"{start}\n{answer_rule(Rules('', '') if form is None else form.rules(demand), demand)}"
    markers = (*(form.markers if form is not None else ()), *THINK)
    if demand.has_text:
        return common_pb2.Grammar(json_schema=json.dumps(TEXT), frame=lark, frame_markers=markers, lenient=True)
    return common_pb2.Grammar(lark=lark, markers=markers, lenient=True)


@pytest.fixture(scope="module")
def walkers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Walker]:
    return {
        (name, special): Walker(tmp_path_factory.mktemp("model"), (*FORMATS[name].markers, *THINK) if special else ())
        for name in FORMATS
        for special in (False, True)
    }


@pytest.mark.parametrize("special", [False, True], ids=["markers are text", "markers are special tokens"])
@pytest.mark.parametrize("demand", DEMANDS.values(), ids=DEMANDS)
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=12)
@given(seed=st.integers(0, 1 << 32))
def test_whatever_is_drawn_is_read_as_what_was_asked(
    walkers: dict[tuple[str, bool], Walker], name: str, demand: Demand, special: bool, seed: int
) -> None:
    text = walkers[name, special].walk(grammar_of(name, demand), Random(seed))
    if text is None:
        return
    heard = heard_in(form_of(name, parallel=demand.parallel), [text])
    assert demand.parallel or len(heard.calls) <= 1
    if demand.must_call:
        assert heard.calls and not heard.content
    elif demand.has_text:
        assert bool(heard.calls) is not bool(heard.content)
    if demand.has_text and heard.content:
        jsonschema.validate(json.loads(heard.content), TEXT)
    for called, arguments in heard.calls:
        said = json.loads(arguments)
        assert isinstance(said, dict)
        if demand.must_call or called == "get_weather":
            jsonschema.validate(said, SCHEMAS[called])


PARIS, NONE = '{"city":"Paris","now":true}', "{}"
WRITTEN = {
    "hermes": [
        f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>\n<tool_call>\n{{"name": "math.add", "arguments": {NONE}}}\n</tool_call>'
    ],
    "llama3": [
        f'{{"name": "get_weather", "parameters": {PARIS}}}; {{"name": "math.add", "parameters": {NONE}}}',
        f'<|python_tag|>{{"name": "get_weather", "parameters": {PARIS}}}',
    ],
    "pythonic": ['[get_weather(city="Paris", now=True), math.add()]', "[search(deep=null)]"],
    "mistral": [
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {PARIS}}}, {{"name": "math.add", "arguments": {NONE}, "id": "aB3456789"}}]',
        f"[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]math.add[ARGS]{NONE}",
        f"[TOOL_CALLS]get_weather[CALL_ID]aB3456789[ARGS]{PARIS}",
    ],
    "deepseek": [
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{PARIS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
    ],
    "json": [f'[{{"name": "get_weather", "arguments": {PARIS}}}]', f'{{"name": "get_weather", "arguments": {PARIS}}}'],
    "harmony": [
        f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{PARIS}",
        f" to=functions.get_weather<|channel|>commentary json<|message|>{PARIS}",
    ],
}


@pytest.mark.parametrize("special", [False, True], ids=["markers are text", "markers are special tokens"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_model_may_write_calls_as_it_does(walkers: dict[tuple[str, bool], Walker], name: str, special: bool) -> None:
    walker = walkers[name, special]
    for text in WRITTEN[name]:
        assert walker.allows(grammar_of(name, DEMANDS["must"]), text)
        assert walker.allows(grammar_of(name, DEMANDS["may"]), text)
        assert walker.allows(grammar_of(name, DEMANDS["call or text"]), text)


@pytest.mark.parametrize("special", [False, True], ids=["markers are text", "markers are special tokens"])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "harmony"])
def test_an_answer_that_may_call_says_what_it_likes_and_one_that_must_does_not(
    walkers: dict[tuple[str, bool], Walker], name: str, special: bool
) -> None:
    walker = walkers[name, special]
    for text in ("", "It is 4 < 5, not {5} or [get].\n", "</tool_cal"):
        assert walker.allows(grammar_of(name, DEMANDS["may"]), text)
        assert not walker.allows(grammar_of(name, DEMANDS["must"]), text)
        assert not walker.allows(grammar_of(name, DEMANDS["call or text"]), text)
    assert walker.allows(grammar_of(name, DEMANDS["call or text"]), '{"answer": 4}')


def test_what_is_said_before_a_marker_is_free_and_what_is_behind_it_a_call(walkers: dict[tuple[str, bool], Walker]) -> None:
    for special in (False, True):
        walker, grammar = walkers["hermes", special], grammar_of("hermes", DEMANDS["may"])
        call = WRITTEN["hermes"][0]
        assert walker.allows(grammar, f"Let me look.\n{call} So.")
        assert not walker.allows(grammar, 'Look: <tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>')
        assert not walker.allows(grammar, 'Look: <tool_call>\n{"name": "get_weather", "arguments": {"city": 1}}\n</tool_call>')
        assert walker.allows(
            grammar, 'Look: <tool_call>\n{"name": "search", "arguments": {"of a tool that is not strict": [1]}}\n</tool_call>'
        )


@pytest.mark.parametrize("special", [False, True], ids=["markers are text", "markers are special tokens"])
@pytest.mark.parametrize("name", ["hermes", "json", None])
def test_reasoning_is_free_and_the_form_is_that_of_what_follows(tmp_path: Path, name: str | None, special: bool) -> None:
    markers = FORMATS[name].markers if name is not None else ()
    walker, at = Walker(tmp_path, (*markers, *THINK) if special else ()), len(markers)
    demand = Demand(TOOLS if name is not None else (), has_text=True)
    begun = grammar_of(name, demand, start_rule(end=at + 1))
    may_think = grammar_of(name, demand, start_rule(begin=at, end=at + 1))
    for space in ("", "\n", "\n\n"):
        assert walker.allows(begun, f'Hm {{"answer": 4}}\n</think>{space}{{"answer": 5}}')
        assert walker.allows(may_think, f'<think>Hm.</think>{space}{{"answer": 5}}')
    assert walker.allows(may_think, '{"answer": 5}')
    assert not walker.allows(may_think, 'Hm.</think>{"answer": 5}')
    assert not walker.allows(begun, '{"answer": 5}')
    assert not walker.allows(begun, "Hm.</think>five")
    if name is not None:
        for call in WRITTEN[name]:
            assert walker.allows(begun, f"Hm.</think>\n\n{call}")


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        (OfferedTool("a-b"), "'a-b' is no name"),
        (OfferedTool("f", '{"properties": {"a b": {}}, "required": ["a b"]}'), "'a b' in the parameters of f is no name"),
        (OfferedTool("f", '{"properties": {"a": {}}, "minProperties": 1}', True), "minProperties in the parameters of f cannot be held"),
        (OfferedTool("f", '{"properties": []}'), "the parameters of f are no schema"),
        (OfferedTool("f", '{"properties": {}, "required": 3}'), "the parameters of f are no schema"),
        (OfferedTool("f", '{"properties": {}, "required": [3]}'), "the parameters of f are no schema"),
    ],
)
def test_what_a_call_in_python_cannot_say_is_named(tool: OfferedTool, says: str) -> None:
    with pytest.raises(CannotHold, match=says):
        FORMATS["pythonic"].rules(Demand((tool,), must_call=True))


def test_of_a_tool_that_is_not_strict_what_cannot_be_held_is_left_out(walkers: dict[tuple[str, bool], Walker]) -> None:
    schema = '{"properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": true}}, "minProperties": 1}'
    for name in ("json", "pythonic"):
        demand = Demand((OfferedTool("f", schema),), must_call=True)
        text = "[f(a=[1])]" if name == "pythonic" else '{"name": "f", "arguments": {"a":[1]}}'
        assert walkers[name, False].allows(grammar_of(name, demand), text)


@pytest.mark.parametrize("name", FORMATS)
def test_as_many_tools_as_there_may_be_can_be_held(walkers: dict[tuple[str, bool], Walker], name: str) -> None:
    tools = tuple(OfferedTool(f"tool_{number}", '{"properties": {"a": {"type": "integer"}}}') for number in range(contract.MAX_TOOLS))
    for demand in (Demand(tools, must_call=True), Demand(tools, has_text=True)):
        called = WRITERS[name][0]([WrittenCall(f"tool_{contract.MAX_TOOLS - 1}", '{"a": 1}')])
        # What ends a call of gpt-oss ends its answer too.
        assert walkers[name, True].allows(grammar_of(name, demand), called.removesuffix("<|call|>"))
