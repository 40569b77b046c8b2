"""Answers that are held to calls, and forms beside tools and behind reasoning, as the unmodified `openai` client asks for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.fakes.fake_tokenizer import FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, running_fleet
from tests.fakes.tool_chats import ASK, BOTH, CALLS, HERMES, THOUGHT, TOOLS, client_of, heard, says, written
from triserve.v1 import common_pb2

NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
STRICT: Any = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(tokenizers=[FakeTokenizer(**HERMES)]) as fleet:
        fleet.compute.script = says(CALLS)
        yield fleet


@pytest.fixture
async def client(fleet: GatewayFleet) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(fleet) as client:
        yield client


@pytest.fixture
async def thinker() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(tokenizers=[FakeTokenizer(**HERMES, reasoning_format="think")]) as fleet:
        yield fleet


@pytest.mark.parametrize(
    ("more", "holds", "finish"),
    [
        ({}, "", "tool_calls"),
        ({"tool_choice": "required"}, "answer: marked", "tool_calls"),
        ({"tool_choice": NAMED}, "answer: marked\n", "stop"),
        ({"tools": STRICT}, "answer: (until_0 body)* WITHOUT_0", "tool_calls"),
        ({"response_format": SCHEMA}, "| @text", "tool_calls"),
        ({"response_format": SCHEMA, "tool_choice": "required"}, "answer: marked", "tool_calls"),
    ],
    ids=["auto", "required", "named", "strict", "form", "required beside a form"],
)
async def test_answers_are_held_to_what_is_asked_of_tools(
    client: AsyncOpenAI, fleet: GatewayFleet, more: dict[str, Any], holds: str, finish: str
) -> None:
    request: Any = {"messages": ASK, "tools": TOOLS, **more}
    whole = (await client.chat.completions.create(model="tiny", **request)).choices[0]
    (streamed,) = await heard(client, **request)
    assert whole.finish_reason == streamed.finish_reason == finish
    assert written(whole.message.tool_calls) == [tuple(call[1:]) for call in streamed.calls]
    assert written(whole.message.tool_calls) == (BOTH[:1] if more.get("tool_choice") == NAMED else BOTH)
    assert whole.message.content == (None if "tool_choice" in more else "Let me look.")
    assert streamed.content == (whole.message.content or "")
    grammar = fleet.compute.submitted[0].sampling.grammar
    assert holds in (grammar.frame or grammar.lark)
    assert [*grammar.markers, *grammar.frame_markers] == (["<tool_call>", "</tool_call>"] if holds else [])
    assert grammar.WhichOneof("kind") == {"": None, "| @text": "json_schema"}.get(holds, "lark")
    if more.get("tool_choice") == NAMED:
        assert "get_time" not in grammar.lark


async def test_of_a_call_that_is_cut_off_before_it_is_one_nothing_is_content(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    fleet.compute.script = says('<tool_call>\n{"name": "get_wea', finish=common_pb2.FINISH_REASON_LENGTH)
    request: Any = {"messages": ASK, "tools": TOOLS, "tool_choice": "required"}
    whole = (await client.chat.completions.create(model="tiny", **request)).choices[0]
    (streamed,) = await heard(client, **request)
    assert (whole.finish_reason, whole.message.content, streamed.content, streamed.calls) == ("length", "", "", [])


async def test_an_answer_that_is_held_to_calls_has_no_least_length(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tools says when a text is whole") as caught:
        await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, tool_choice="required", extra_body={"min_tokens": 3})
    assert caught.value.param == "min_tokens"


@pytest.mark.parametrize("begun", [False, True])
async def test_reasoning_comes_before_an_answer_of_a_form(thinker: GatewayFleet, begun: bool) -> None:
    thinker.tokenizer.prompt_end = "<think>\n" if begun else ""
    thinker.compute.script = says((THOUGHT + '{"a": 1}').removeprefix("<think>" if begun else ""))
    async with client_of(thinker) as client:
        message: Any = (await client.chat.completions.create(model="tiny", messages=ASK, response_format=SCHEMA)).choices[0].message
    assert (message.reasoning_content, message.content) == ("Hm, <b>.", '{"a": 1}')
    (asked,) = thinker.compute.submitted
    assert asked.sampling.grammar.frame.splitlines()[:1] == [f"start: {'until_1 SPACE?' if begun else '(marker_0 until_1 SPACE?)?'} answer"]
    assert list(asked.sampling.grammar.frame_markers) == list(asked.stopping.spoken_tokens) == ["<think>", "</think>"]
