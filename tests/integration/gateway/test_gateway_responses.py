"""The real `openai` client's Responses API against a gateway whose stages are fakes over real gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from tests.fakes.fake_compute import Say
from tests.fakes.fake_tokenizer import FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.rpc.errors import Overloaded, Unavailable
from triserve.v1 import common_pb2

STREAM_EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
ECHO = "user: Hello\nassistant: "


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(tokenizers=[FakeTokenizer(template_arguments=["reasoning_effort"])]) as fleet:
        yield fleet


@pytest.fixture
async def client(fleet: GatewayFleet) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


async def test_a_response_comes_whole(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    asked: dict[str, Any] = {"temperature": 0.5, "top_p": 0.75, "max_output_tokens": 99, "user": "u-1"}
    response = await client.responses.create(model="tiny", input="Hello", metadata={"session": "7"}, store=True, **asked)
    assert response.output_text == ECHO
    assert (response.status, response.model, response.object, response.error) == ("completed", "tiny", "response", None)
    assert response.id.startswith("resp_")
    assert response.metadata == {"session": "7"}
    assert {name: getattr(response, name) for name in asked} == asked
    assert getattr(response, "store", None) is False, "nothing is kept, whatever is asked"
    (message,) = response.output
    assert (message.type, message.role, message.status, message.id.startswith("msg_")) == ("message", "assistant", "completed", True)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (len(ECHO), len(ECHO) + 1)
    assert (response.usage.total_tokens, response.usage.input_tokens_details.cached_tokens) == (2 * len(ECHO) + 1, 2)
    (request,) = fleet.compute.submitted
    assert (request.sampling.temperature, request.sampling.top_p, request.stopping.max_tokens) == (0.5, 0.75, 99)


async def test_a_response_streams_the_same_answer_in_typed_events_in_order(client: AsyncOpenAI) -> None:
    events: list[Any] = [event async for event in await client.responses.create(model="tiny", input="Hello", stream=True)]
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = ["output_text.delta"] * len(ECHO)
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added", *deltas),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ECHO
    assert (events[0].response.status, events[0].response.usage, events[0].response.output) == ("in_progress", None, [])
    assert (events[2].item.status, events[2].item.content, events[3].part.text) == ("in_progress", [], "")
    assert (events[-4].text, events[-3].part.text, events[-2].item.content[0].text, events[-1].response.output_text) == (ECHO,) * 4
    items = {event.item_id for event in events if hasattr(event, "item_id")} | {events[2].item.id, events[-2].item.id}
    assert items == {events[-1].response.output[0].id}
    assert events[-1].response.usage.output_tokens == len(ECHO) + 1
    whole = await client.responses.create(model="tiny", input="Hello")
    apart = {"id", "created_at", "output"}
    assert events[-1].response.model_dump(exclude=apart) == whole.model_dump(exclude=apart)


async def test_every_event_has_all_that_the_client_s_types_ask_for(fleet: GatewayFleet) -> None:
    asked = {"input": "Hello", "stream": True, "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    async with aiohttp.ClientSession(fleet.url) as session, session.post("/v1/responses", json=asked) as response:
        assert response.content_type == "text/event-stream"
        events = (await response.read()).decode().removesuffix("\n\n").split("\n\n")
    for event in events:
        name, data = event.split("\n")
        # The client itself makes its types of whatever comes.
        typed = STREAM_EVENT.validate_json(data.removeprefix("data: "))
        assert name == f"event: {typed.type}"


async def test_the_client_s_own_stream_gathers_the_answer(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="tiny", input="Hello") as stream:
        texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(texts) == final.output_text == ECHO


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_cut_is_incomplete_and_says_why(client: AsyncOpenAI, stream: bool) -> None:
    response: Any = await client.responses.create(model="tiny", input="Hello", max_output_tokens=3, stream=stream)
    if stream:
        response = [event async for event in response][-1]
        assert response.type == "response.incomplete"
        response = response.response
    assert (response.status, response.incomplete_details.reason, response.output_text) == ("incomplete", "max_output_tokens", "use")
    assert response.output[0].status == "incomplete"


async def test_an_answer_kept_of_a_chat_is_a_response_to_the_same_question(fleet: GatewayFleet) -> None:
    turns = [{"role": "user", "content": "Hello"}]
    async with aiohttp.ClientSession(fleet.url) as session:
        for path, body in (
            ("/v1/chat/completions", {"messages": turns, "max_tokens": 50}),
            ("/v1/responses", {"input": turns, "max_output_tokens": 50}),
        ):
            async with session.post(path, json={**body, "temperature": 0}) as response:
                cache, answer = response.headers["X-Triserve-Cache"], await response.json()
    assert (cache, answer["output"][0]["content"][0]["text"]) == ("hit-exact", ECHO)
    assert len(fleet.compute.submitted) == 1


async def test_turns_of_every_form_reach_the_template_behind_the_instructions(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    first = await client.responses.create(model="tiny", input="Hello", max_output_tokens=4)
    turns: Any = [
        {"role": "developer", "content": "Be kind"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
        *[item.model_dump() for item in first.output],
        {"role": "user", "content": "And?"},
    ]
    await client.responses.create(model="tiny", instructions="Be brief", input=turns, reasoning={"effort": "low"})
    prompt = "system: Be brief\ndeveloper: Be kind\nuser: one\ntwo\nassistant: user\nuser: And?\nassistant: "
    request = fleet.compute.submitted[-1]
    assert bytes(request.token_ids).decode() == prompt
    assert request.system_tokens == len("system: Be brief\n")
    (argument,) = fleet.tokenizer.asked[-1].encode.chat.template_arguments
    assert (argument.name, argument.string_value) == ("reasoning_effort", "low")


async def test_log_probabilities_come_where_they_are_included(client: AsyncOpenAI) -> None:
    asked: Any = {"model": "tiny", "input": "Hello", "max_output_tokens": 3, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    response: Any = await client.responses.create(**asked)
    whole = response.output[0].content[0].logprobs
    assert [(one.token, one.logprob, len(one.top_logprobs)) for one in whole] == [("u", -0.5, 2), ("s", -0.5, 2), ("e", -0.5, 2)]
    events: list[Any] = [event async for event in await client.responses.create(**asked, stream=True)]
    deltas = [one.token for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    assert "".join(deltas) == "use"
    assert events[-1].response.output[0].content[0].logprobs == whole
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="tiny", input="Hello", top_logprobs=2)
    assert caught.value.param == "top_logprobs"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": "x" * 5000}, "input"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_not_done_is_refused_by_name(fleet: GatewayFleet, fields: dict[str, Any], named: str) -> None:
    body = {"input": "Hello", **fields}
    async with aiohttp.ClientSession(fleet.url) as session, session.post("/v1/responses", json=body) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, named)
    assert not fleet.compute.submitted


async def test_what_asks_for_nothing_is_let_through(client: AsyncOpenAI) -> None:
    idle: Any = {
        "tools": [],
        "tool_choice": "auto",
        "background": False,
        "truncation": "disabled",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "reasoning": {"summary": None},
        "include": ["reasoning.encrypted_content"],
        "previous_response_id": None,
        "parallel_tool_calls": False,
        "stream_options": {"include_obfuscation": False},
    }
    assert (await client.responses.create(model="tiny", input="Hello", **idle)).output_text == ECHO


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_is_the_clients_exception(fleet: GatewayFleet, client: AsyncOpenAI, stream: bool) -> None:
    fleet.compute.script = lambda request: [Overloaded("too many wait")]
    with pytest.raises(openai.RateLimitError):
        await client.responses.create(model="tiny", input="Hello", stream=stream)
    await eventually(lambda: fleet.active == 0)


async def test_a_failure_after_the_first_token_is_the_last_event(fleet: GatewayFleet, client: AsyncOpenAI) -> None:
    fleet.compute.script = lambda request: [Say("begun", [1]), Unavailable("the sampler was lost")]
    events: list[Any] = [event async for event in await client.responses.create(model="tiny", input="Hello", stream=True)]
    assert [event.type for event in events[-2:]] == ["response.output_text.delta", "response.failed"]
    assert (events[-1].response.status, events[-1].response.error.code) == ("failed", "server_error")
    assert events[-1].response.error.message == "the sampler was lost"


async def test_an_answer_is_of_the_form_that_is_asked_for(fleet: GatewayFleet, client: AsyncOpenAI) -> None:
    form: Any = {"type": "json_schema", "name": "place", "schema": {"type": "object"}}
    response = await client.responses.create(model="tiny", input="Hello", text={"format": form})
    assert response.text is not None and response.text.format is not None and response.text.format.type == "json_schema"
    assert [request.sampling.grammar.json_schema for request in fleet.compute.submitted] == ['{"type":"object"}']


async def test_what_the_model_thinks_is_no_text_of_a_response() -> None:
    async with running_fleet(tokenizers=[FakeTokenizer(reasoning_format="think")]) as fleet:
        pieces = ["<thi", "nk>Hm.", " So</", "think>\n", "\nIt is", " 4."]
        fleet.compute.script = lambda request: [*(Say(piece, [1]) for piece in pieces), Say("", [256], common_pb2.FINISH_REASON_STOP)]
        async with AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
            assert (await client.responses.create(model="tiny", input="Hello")).output_text == "It is 4."
            events: list[Any] = [event async for event in await client.responses.create(model="tiny", input="Hello", stream=True)]
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "It is 4."
        assert (events[-1].response.output_text, events[-1].response.usage.output_tokens) == ("It is 4.", 7)


async def test_an_answer_without_a_word_is_a_response_all_the_same(fleet: GatewayFleet, client: AsyncOpenAI) -> None:
    fleet.compute.script = lambda request: [Say("", [256], common_pb2.FINISH_REASON_STOP)]
    events: list[Any] = [event async for event in await client.responses.create(model="tiny", input="Hello", stream=True)]
    assert (events[0].type, events[-1].type, events[-1].response.output_text) == ("response.created", "response.completed", "")
