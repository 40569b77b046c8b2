"""Tools through the Responses API and the Messages API, as their unmodified clients see them; the model is one that says what a test writes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import RawMessageStreamEvent
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from tests.fakes.fake_tokenizer import FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, running_fleet
from tests.fakes.tool_chats import CALLS, HERMES, PARIS, ROME, TOOLS, client_of, says

RESPONSE_EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
MESSAGE_EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
RESPONSE_TOOLS: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
MESSAGE_TOOLS: Any = [{"name": tool["function"]["name"], "input_schema": {"type": "object"}} for tool in TOOLS]
ASK = "How is the weather in Paris and Rome?"
ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 100}


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(tokenizers=[FakeTokenizer(**HERMES, reasoning_format="think")]) as fleet:
        fleet.compute.script = says(f"<think>Hm.</think>\n{CALLS}")
        yield fleet


@pytest.fixture
async def responses(fleet: GatewayFleet) -> AsyncIterator[AsyncOpenAI]:
    async with client_of(fleet) as client:
        yield client


@pytest.fixture
async def messages(fleet: GatewayFleet) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=fleet.url, api_key="none", max_retries=0, timeout=20) as client:
        yield client


async def test_a_response_thinks_says_and_calls(responses: AsyncOpenAI) -> None:
    whole: Any = await responses.responses.create(model="tiny", input=ASK, tools=RESPONSE_TOOLS, parallel_tool_calls=True)
    thought, message, *called = whole.output
    assert (thought.type, thought.summary, thought.content[0].text, whole.output_text) == ("reasoning", [], "Hm.", "Let me look.")
    assert message.type == "message"
    assert [(one.type, one.name, one.arguments, one.status) for one in called] == [
        ("function_call", "get_weather", arguments, "completed") for arguments in (PARIS, ROME)
    ]
    assert len({item.id for item in whole.output} | {one.call_id for one in called}) == 6
    assert [(tool.name, tool.type) for tool in whole.tools] == [("get_weather", "function"), ("get_time", "function")]
    assert (whole.status, whole.tool_choice) == ("completed", "auto")
    async with responses.responses.stream(model="tiny", input=ASK, tools=RESPONSE_TOOLS) as stream:
        arguments = [event.delta async for event in stream if event.type == "response.function_call_arguments.delta"]
        final: Any = await stream.get_final_response()
    assert "".join(arguments) == PARIS + ROME
    apart = {"id", "call_id", "parsed_arguments", "parsed"}
    told = [item.model_dump(exclude=apart) for item in whole.output]
    assert [item.model_dump(exclude=apart) for item in final.output][2:] == told[2:]
    assert (final.output[0].content[0].text, final.output_text) == ("Hm.", "Let me look.")


async def test_a_response_goes_on_with_results(responses: AsyncOpenAI, fleet: GatewayFleet) -> None:
    first: Any = await responses.responses.create(model="tiny", input=ASK, tools=RESPONSE_TOOLS)
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "12"} for item in first.output if item.type == "function_call"
    ]
    fleet.compute.script = says("12 in both.")
    history: Any = [{"role": "user", "content": ASK}, *[item.model_dump() for item in first.output], *results]
    assert (await responses.responses.create(model="tiny", input=history, tools=RESPONSE_TOOLS)).output_text == "12 in both."
    _, turn, *told = fleet.tokenizer.asked[-1].encode.chat.messages
    assert (turn.content, turn.reasoning, [call.arguments for call in turn.tool_calls]) == ("Let me look.", "Hm.", [PARIS, ROME])
    assert [(one.role, one.tool_call_id, one.content) for one in told] == [("tool", call.id, "12") for call in turn.tool_calls]


async def test_a_message_says_and_uses_tools(messages: AsyncAnthropic, fleet: GatewayFleet) -> None:
    ask: Any = {**ASKED, "messages": [{"role": "user", "content": ASK}], "tools": MESSAGE_TOOLS}
    whole: Any = await messages.messages.create(**ask)
    text, *used = whole.content
    assert (text.text, whole.stop_reason) == ("Let me look.", "tool_use")
    assert [(one.type, one.name, one.input) for one in used] == [
        ("tool_use", "get_weather", {"city": "Paris", "é": "é"}),
        ("tool_use", "get_weather", {"city": "Rome"}),
    ]
    async with messages.messages.stream(**ask) as stream:
        pieces = [event.partial_json async for event in stream if event.type == "input_json"]
        final: Any = await stream.get_final_message()
    assert "".join(pieces) == PARIS + ROME
    apart = {"id", "content"}
    assert final.model_dump(exclude=apart, exclude_none=True) == whole.model_dump(exclude=apart, exclude_none=True)
    assert [(one.name, one.input) for one in final.content[1:]] == [(one.name, one.input) for one in used]
    fleet.compute.script = says("12 in both.")
    results = [{"type": "tool_result", "tool_use_id": one.id, "content": "12"} for one in used]
    history: Any = [*ask["messages"], whole.to_param(), {"role": "user", "content": results}]
    second: Any = await messages.messages.create(**{**ask, "messages": history})
    assert (second.content[0].text, second.stop_reason) == ("12 in both.", "end_turn")
    _, turn, *told = fleet.tokenizer.asked[-1].encode.chat.messages
    assert [(one.role, one.tool_call_id) for one in told] == [("tool", call.id) for call in turn.tool_calls]
    count = await messages.messages.count_tokens(model="tiny", messages=history, tools=MESSAGE_TOOLS)
    assert count.input_tokens == len(fleet.compute.submitted[-1].token_ids)


@pytest.mark.parametrize(
    ("path", "body", "adapter"),
    [
        ("/v1/responses", {"input": ASK, "tools": RESPONSE_TOOLS}, RESPONSE_EVENT),
        ("/v1/messages", {**ASKED, "messages": [{"role": "user", "content": ASK}], "tools": MESSAGE_TOOLS}, MESSAGE_EVENT),
    ],
    ids=["responses", "messages"],
)
async def test_every_event_has_all_that_the_client_s_types_ask_for(
    fleet: GatewayFleet, path: str, body: dict[str, Any], adapter: TypeAdapter[Any]
) -> None:
    async with aiohttp.ClientSession(fleet.url) as session, session.post(path, json={**body, "stream": True}) as response:
        events = (await response.read()).decode().removesuffix("\n\n").split("\n\n")
    for event in events:
        name, data = event.split("\n")
        if name != "event: ping":
            assert name == f"event: {adapter.validate_json(data.removeprefix('data: ')).type}"


async def test_calls_that_must_be_made_are_held_at_every_door(
    responses: AsyncOpenAI, messages: AsyncAnthropic, fleet: GatewayFleet
) -> None:
    named: Any = {"type": "function", "name": "get_time"}
    answer: Any = await responses.responses.create(model="tiny", input=ASK, tools=RESPONSE_TOOLS, tool_choice=named)
    assert answer.tool_choice.name == "get_time"
    ask: Any = {**ASKED, "messages": [{"role": "user", "content": ASK}], "tools": MESSAGE_TOOLS}
    one: Any = {"type": "tool", "name": "get_time", "disable_parallel_tool_use": True}
    message = await messages.messages.create(**ask, tool_choice=one)
    assert message.stop_reason == "tool_use", "also where its client has chosen"
    assert len([block for block in message.content if block.type == "tool_use"]) == 1
    await messages.messages.create(**ask, tool_choice={"type": "any"})
    first, second, third = (request.sampling.grammar.lark for request in fleet.compute.submitted)
    assert "get_time" in first and "get_weather" not in first
    assert "get_time" in second and "get_weather" not in second and 'marked ("' not in second
    assert "get_time" in third and "get_weather" in third


async def test_what_is_wrong_with_tools_is_named_at_every_door(responses: AsyncOpenAI, messages: AsyncAnthropic) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await responses.responses.create(model="tiny", input=ASK, tools=RESPONSE_TOOLS, tool_choice={"type": "function", "name": "f"})
    assert caught.value.param == "tool_choice"
    with pytest.raises(anthropic.BadRequestError, match="tools is empty"):
        await messages.messages.create(**ASKED, messages=[{"role": "user", "content": ASK}], tool_choice={"type": "any"})
