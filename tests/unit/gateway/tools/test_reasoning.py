"""Reasoning is set apart from what is said, whether the model or the prompt began it, and whatever pieces it comes in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tools.registry import REASONING, call_format, reasoning_format
from tests.examples import examples
from tests.fakes.tool_answers import WRITERS, Heard, WrittenCall, cut, form_of, heard_in, places

THINK = REASONING["think"]
CALL = WrittenCall("search", '{"q": "<think>"}')


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nhm\n</think>\n\nIt is 4.", Heard("It is 4.", "hm", [])),
        ("\n <think>a\n\nb</think>c ", Heard("c ", "a\n\nb", [])),
        ("<think>\n\n</think>\n\nYes.", Heard("Yes.", "", [])),
        ("<think></think>", Heard("", "", [])),
        ("<think>cut o", Heard("", "cut o", [])),
        ("<think>a</thi", Heard("", "a</thi", [])),
        ("<think>a</think>b</think><think>c</think>", Heard("b</think><think>c</think>", "a", [])),
    ],
)
def test_what_is_between_the_markers_is_reasoning(text: str, expected: Heard, begun: bool) -> None:
    form = form_of(None, reasoning=THINK, begins_in_reasoning=begun)
    assert heard_in(form, [text]) == expected == heard_in(form, list(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hm\n</think>\n\nIt is 4.", Heard("It is 4.", "hm", [])),
        ("hm", Heard("", "hm", [])),
        ("</think>\n\nYes.", Heard("Yes.", "", [])),
        ("", Heard("", "", [])),
    ],
)
def test_a_prompt_may_have_begun_it(text: str, expected: Heard) -> None:
    form = form_of(None, reasoning=THINK, begins_in_reasoning=True)
    assert heard_in(form, [text]) == expected == heard_in(form, list(text))


@pytest.mark.parametrize("text", ["It is 4.", " \n", "hm</think>4", "So <think>x</think>", "<thin", "  <b>", ""])
def test_an_answer_that_does_not_begin_with_it_is_content_as_it_is(text: str) -> None:
    form = form_of(None, reasoning=THINK)
    assert heard_in(form, [text]) == Heard(text, "", []) == heard_in(form, list(text))


pieces = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "think>", "</", " ", "\n", "a", "<tool_call>", '{"name": "search"}']), max_size=8
)


@examples(60)
@given(text=pieces.map("".join), places=places, begun=st.booleans())
@pytest.mark.parametrize("calls", [None, "hermes", "json"])
def test_any_pieces_give_the_same(calls: str | None, text: str, places: list[int], begun: bool) -> None:
    form = form_of(calls, reasoning=THINK, begins_in_reasoning=begun)
    assert heard_in(form, cut(text, places)) == heard_in(form, [text]) == heard_in(form, list(text))


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "harmony"])
def test_calls_follow_reasoning_and_are_not_looked_for_in_it(name: str) -> None:
    written = WRITERS[name][0]([CALL])
    form = form_of(name, reasoning=THINK)
    assert heard_in(form, [f"<think>I could write {written}</think>\n\n{written}"]).calls == [CALL]


@pytest.mark.parametrize("name", REASONING)
def test_every_kind_of_markers_is_known(name: str) -> None:
    markers = REASONING[name]
    form = form_of(None, reasoning=reasoning_format("auto", name))
    assert heard_in(form, [f"{markers.begin}a{markers.end}b"]) == Heard("b", "a", [])


def test_the_operator_s_choice_goes_before_the_template_s() -> None:
    assert reasoning_format("none", "think") is None
    assert reasoning_format("brackets", "think") == REASONING["brackets"]
    assert reasoning_format("auto", "") is None
    assert reasoning_format("auto", "of a later version") is None
    hermes: Any = call_format("auto", "hermes")
    assert "<tool_call>" in hermes.markers
    assert call_format("json", "hermes") != hermes
    assert call_format("auto", "") is None
