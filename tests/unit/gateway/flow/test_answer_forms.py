"""Which parsers an answer gets: by the operator, or else by the model's chat template, and only for what was asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.flow.answer_forms import AnswerForms
from gateway.flow.call import AnswerReading, Call, Prompt, Wishes
from gateway.tools.argument_grammars import OfferedTool
from gateway.tools.call_formats import FORMATS
from gateway.tools.registry import REASONING
from tests.fakes.fake_stages import MODEL
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import common_pb2, tokenizer_pb2

THINKER = replace(MODEL, takes_tools=True, tool_call_format="hermes", reasoning_format="think", has_chat_template=True)
TOOLS = AnswerReading(tools=frozenset({"f"}))


ASKED = tokenizer_pb2.EncodeRequest(chat=tokenizer_pb2.ChatInput(messages=[tokenizer_pb2.ChatMessage(role="user", content="<think>")]))


def call(reading: AnswerReading | None, prompt: Prompt = ASKED) -> Call:
    return Call(request_id="r", tenant="t", route="chat", model="", prompts=(prompt,), prompt_field="messages", reading=reading)


@pytest.mark.parametrize(
    ("reading", "changes", "settings", "calls", "reasoning"),
    [
        (TOOLS, {}, {}, "hermes", "think"),
        (AnswerReading(), {}, {}, None, "think"),
        (TOOLS, {"reasoning_format": ""}, {}, "hermes", None),
        (TOOLS, {}, {"tool_parser": "json", "reasoning_parser": "seed"}, "json", "seed"),
        (TOOLS, {}, {"reasoning_parser": "none"}, "hermes", None),
        (TOOLS, {"tool_call_format": "harmony", "reasoning_format": "harmony"}, {}, "harmony", None),
        (AnswerReading(), {"tool_call_format": "harmony", "reasoning_format": "harmony"}, {}, "harmony", None),
        (TOOLS, {"tool_call_format": "harmony", "reasoning_format": "harmony"}, {"tool_parser": "hermes"}, "hermes", None),
    ],
)
def test_what_is_looked_for_and_how(
    reading: AnswerReading, changes: dict[str, Any], settings: dict[str, Any], calls: str | None, reasoning: str | None
) -> None:
    forms, model = AnswerForms(**settings), replace(THINKER, **changes)
    form = forms.of(call(reading), model, prompt_end="")
    assert form is not None
    assert form.calls == (FORMATS[calls] if calls else None)
    assert form.reasoning == (REASONING[reasoning] if reasoning else None)
    assert (form.tools, form.request_id) == (reading.tools, "r")
    markers = (*(FORMATS[calls].markers if calls else ()), *(REASONING[reasoning].markers if reasoning else ()))
    assert forms.spoken_tokens(call(reading), model) == markers


@pytest.mark.parametrize(
    ("reading", "changes", "settings"),
    [
        (None, {}, {}),
        (AnswerReading(), {"reasoning_format": ""}, {}),
        (AnswerReading(), {}, {"reasoning_parser": "none"}),
        (AnswerReading(), {"reasoning_format": "of a later version"}, {}),
    ],
)
def test_a_text_in_which_nothing_is_looked_for_is_left_as_it_is(
    reading: AnswerReading | None, changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    forms, model = AnswerForms(**settings), replace(THINKER, **changes)
    assert forms.of(call(reading), model, prompt_end="<think>") is None
    assert forms.spoken_tokens(call(reading), model) == ()


def grammar(reading: AnswerReading | None, *, text: common_pb2.Grammar | None = None, end: str = "", **changes: Any) -> Any:
    asked = replace(call(reading), wishes=Wishes(grammar=text))
    return AnswerForms().grammar(asked, replace(THINKER, **changes), prompt_end=end)


@pytest.mark.parametrize(
    ("end", "start"),
    [
        ("", "start: (marker_0 until_1 SPACE?)? answer"),
        ("<think>\n", "start: until_1 SPACE? answer"),
        ("<think>\n\n</think>\n\n", "start: answer"),
    ],
)
def test_a_form_is_that_of_what_follows_reasoning(end: str, start: str) -> None:
    held = grammar(AnswerReading(), text=common_pb2.Grammar(regex="a+"), end=end)
    assert (held.regex, held.frame.splitlines()[0], list(held.frame_markers)) == ("a+", start, ["<think>", "</think>"])


def test_where_nothing_is_taken_apart_a_form_is_that_of_the_whole_answer() -> None:
    text = common_pb2.Grammar(regex="a+")
    assert grammar(None, text=text) is grammar(AnswerReading(), text=text, reasoning_format="") is text


MAY, MUST = (AnswerReading.of_tools([OfferedTool("f", None, False)], must_call=must, name=None, parallel=True) for must in (False, True))
STRICT = AnswerReading.of_tools([OfferedTool("f", None, True)], must_call=False, name=None, parallel=True)


def test_an_answer_that_may_call_is_free_unless_a_tool_is_strict() -> None:
    assert grammar(MAY) is None
    held = grammar(STRICT)
    assert "WITHOUT_0" in held.lark and not held.frame
    assert list(held.markers) == ["<tool_call>", "</tool_call>", "<think>", "</think>"]


def test_an_answer_that_must_call_has_no_room_for_a_text_of_another_form() -> None:
    text = common_pb2.Grammar(json_schema="{}")
    assert grammar(MUST, text=text) == grammar(MUST)
    assert "@text" in grammar(MAY, text=text).frame and "@text" not in grammar(MUST).lark


def test_a_model_that_must_call_does_so_in_json_where_its_own_form_is_not_known() -> None:
    unknown = replace(THINKER, tool_call_format="")
    AnswerForms().check(call(MUST), unknown)
    form = AnswerForms().of(call(MUST), unknown, prompt_end="")
    assert form is not None and form.calls == FORMATS["json"]
    with pytest.raises(InvalidRequest, match="not known here"):
        AnswerForms().check(call(MAY), unknown)


def test_a_tool_that_no_grammar_can_hold_is_refused() -> None:
    reading = AnswerReading.of_tools([OfferedTool("a-b", None, False)], must_call=True, name=None, parallel=True)
    with pytest.raises(InvalidRequest, match="'a-b' is no name") as caught:
        grammar(reading, tool_call_format="pythonic")
    assert caught.value.field == "tools"


@pytest.mark.parametrize(
    ("end", "begins"), [("x<think>\n", True), ("<think>", True), ("<think>\n\n</think>\n", False), ("", False), ("[THINK]", False)]
)
def test_the_prompt_s_end_tells_whether_reasoning_has_begun(end: str, begins: bool) -> None:
    form = AnswerForms().of(call(AnswerReading()), THINKER, prompt_end=end)
    assert form is not None and form.begins_in_reasoning is begins


@pytest.mark.parametrize(
    ("opening", "begins"),
    [("<think>", True), ("<think>\nhm", True), ("<think>hm</think>It", False), ("It", False), ("", False), ("a</think><think>b", True)],
)
def test_an_answer_goes_on_with_the_reasoning_of_a_turn_that_is_continued(opening: str, begins: bool) -> None:
    prompt = tokenizer_pb2.EncodeRequest()
    prompt.CopyFrom(ASKED)
    prompt.chat.messages.add(role="assistant", content=opening)
    prompt.chat.continue_final_message = True
    form = AnswerForms().of(call(AnswerReading(), prompt), THINKER, prompt_end="")
    assert form is not None and form.begins_in_reasoning is begins
    prompt.chat.continue_final_message = False
    form = AnswerForms().of(call(AnswerReading(), prompt), THINKER, prompt_end="")
    assert form is not None and not form.begins_in_reasoning, "the turn is over"


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"takes_tools": False}, "takes no tools"), ({"tool_call_format": ""}, "GATEWAY_TOOL_PARSER may be set to one of")],
)
def test_tools_are_refused_where_calls_would_be_lost(changes: dict[str, Any], said: str) -> None:
    model = replace(THINKER, **changes)
    with pytest.raises(InvalidRequest, match=said):
        AnswerForms().check(call(TOOLS), model)
    AnswerForms().check(call(AnswerReading()), model)
    AnswerForms().check(call(None), model)
    # It has a refusal of its own.
    AnswerForms().check(call(TOOLS), replace(model, has_chat_template=False))
    AnswerForms().check(call(TOOLS), THINKER)
