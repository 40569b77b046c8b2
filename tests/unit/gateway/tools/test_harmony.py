"""Answers in the form of gpt-oss: each part goes where it belongs, and what has no form is content."""

from __future__ import annotations

import pytest

from gateway.tools.registry import whole_format
from tests.fakes.tool_answers import Heard, form_of, heard_in

ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"
CALL = " to=functions.search<|channel|>commentary <|constrain|>json<|message|>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ANALYSIS}Hm.{NEXT}{FINAL}It is 4.", Heard("It is 4.", "Hm.", [])),
        (f"{FINAL}It is\n 4. ", Heard("It is\n 4. ", "", [])),
        (f"{ANALYSIS}a{NEXT}{ANALYSIS}b{NEXT}{FINAL}c", Heard("c", "a\n\nb", [])),
        (f"<|channel|>commentary<|message|>I look.{NEXT}{FINAL}Done.", Heard("I look.\n\nDone.", "", [])),
        (f'{ANALYSIS}Hm.{NEXT}{CALL}{{"q": 1}}<|call|>', Heard("", "Hm.", [("search", '{"q": 1}')])),
        (
            f'{ANALYSIS}Hm.{NEXT}<|channel|>commentary to=functions.search json<|message|>{{"q": 1}}',
            Heard("", "Hm.", [("search", '{"q": 1}')]),
        ),
        (f'{CALL}{{"q": "a < b"}}', Heard("", "", [("search", '{"q": "a < b"}')])),
        (f'{CALL}{{"q": 1}}<|call|><|start|>assistant{CALL}{{"q": 2}}', Heard("", "", [("search", '{"q": 1}'), ("search", '{"q": 2}')])),
        (f"{ANALYSIS}cut o", Heard("", "cut o", [])),
        (f'{CALL}{{"q": "cut', Heard("", "", [("search", '{"q": "cut')])),
        ("It is 4 < 5, to=functions.search.", Heard("It is 4 < 5, to=functions.search.", "", [])),
        ("assistant is what I am", Heard("assistant is what I am", "", [])),
        (" to be", Heard(" to be", "", [])),
        ("<|channel|>ana", Heard("<|channel|>ana", "", [])),
        ("", Heard("", "", [])),
    ],
)
def test_each_part_goes_where_it_belongs(text: str, expected: Heard) -> None:
    form = form_of("harmony")
    assert heard_in(form, [text]) == expected == heard_in(form, list(text))


def test_an_answer_without_a_form_is_told_as_it_comes() -> None:
    parser = form_of("harmony").parser(0)
    assert [parser.feed(text).content for text in ("Hel", "lo", " there")] == ["Hel", "lo", " there"]


def test_without_tools_what_is_meant_for_one_is_content() -> None:
    form = form_of("harmony", tools=frozenset())
    assert heard_in(form, [f'{CALL}{{"q": 1}}<|call|>']) == Heard('{"q": 1}', "", [])


def test_the_form_holds_for_reasoning_and_calls_at_once() -> None:
    assert whole_format("auto", "harmony") == whole_format("harmony", "think") is not None
    assert whole_format("auto", "think") is whole_format("none", "harmony") is None
