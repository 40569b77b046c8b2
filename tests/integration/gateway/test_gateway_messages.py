"""The real `anthropic` client against a gateway whose stages are fakes over real gRPC."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.fakes.fake_compute import FakeCompute, Say
from tests.fakes.fake_tokenizer import EOS, FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.rpc.errors import Overloaded, ServiceError, Unavailable
from triserve.v1 import common_pb2, compute_pb2

STREAM_EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
HELLO: Any = [{"role": "user", "content": "Hello"}]
ECHO = "user: Hello\nassistant: "
ASKED: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 100}


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(computes=[FakeCompute(max_model_len_tokens=256)]) as fleet:
        yield fleet


@pytest.fixture
async def client(fleet: GatewayFleet) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=fleet.url, api_key="none", max_retries=0, timeout=20) as client:
        yield client


async def test_a_message_comes_whole(client: AsyncAnthropic, fleet: GatewayFleet) -> None:
    sampling = {"temperature": 0.5, "top_p": 0.75, "top_k": 7}
    message = await client.messages.create(**ASKED, system="Be brief", metadata={"user_id": "u-1"}, extra_body=sampling)
    said = f"system: Be brief\n{ECHO}"
    assert [block.model_dump(exclude_none=True) for block in message.content] == [{"type": "text", "text": said}]
    assert (message.type, message.role, message.model, message.id.startswith("msg_")) == ("message", "assistant", "tiny", True)
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (len(said) - 2, 2)
    assert message.usage.output_tokens == len(said) + 1
    (request,) = fleet.compute.submitted
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.5, 0.75, 7)
    assert (request.stopping.max_tokens, request.system_tokens) == (100, len("system: Be brief\n"))


async def test_a_message_streams_the_same_answer_in_events_in_order(client: AsyncAnthropic) -> None:
    events: list[Any] = [event async for event in await client.messages.create(**ASKED, stream=True)]
    deltas = ["content_block_delta"] * len(ECHO)
    assert [event.type for event in events] == [
        *("message_start", "content_block_start", *deltas),
        *("content_block_stop", "message_delta", "message_stop"),
    ], "and a ping, which the client passes over"
    start = events[0].message
    assert (start.content, start.stop_reason, start.usage.input_tokens, start.usage.output_tokens) == ([], None, len(ECHO) - 2, 0)
    assert "".join(event.delta.text for event in events if event.type == "content_block_delta") == ECHO
    assert (events[-2].delta.stop_reason, events[-2].usage.output_tokens) == ("end_turn", len(ECHO) + 1)


async def test_every_event_has_all_that_the_client_s_types_ask_for(fleet: GatewayFleet) -> None:
    async with aiohttp.ClientSession(fleet.url) as session, session.post("/v1/messages", json={**ASKED, "stream": True}) as response:
        assert response.content_type == "text/event-stream"
        events = (await response.read()).decode().removesuffix("\n\n").split("\n\n")
    for event in events:
        name, data = event.split("\n")
        if name != "event: ping":
            # The client itself makes its types of whatever comes.
            assert name == f"event: {STREAM_EVENT.validate_json(data.removeprefix('data: ')).type}"


async def test_the_client_s_own_stream_gathers_the_answer(client: AsyncAnthropic) -> None:
    async with client.messages.stream(**ASKED) as stream:
        texts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    whole = await client.messages.create(**ASKED)
    assert "".join(texts) == ECHO
    assert final.model_dump(exclude={"id"}, exclude_none=True) == whole.model_dump(exclude={"id"}, exclude_none=True)


def until(stop: str) -> Any:
    """A script that ends its answer with a stop string, as a sampler does that is to include it."""

    def script(request: compute_pb2.SubmitRequest) -> list[Say]:
        assert request.stopping.include_stop_string and stop in request.stopping.stop_strings
        return [Say("one ", [1]), Say(f"two{stop}", [2], common_pb2.FINISH_REASON_STOP)]

    return script


@pytest.mark.parametrize("stream", [False, True])
async def test_the_stop_sequence_is_named_and_is_no_text(fleet: GatewayFleet, client: AsyncAnthropic, stream: bool) -> None:
    fleet.compute.script = until("\n\nEND")
    asked: Any = {**ASKED, "stop_sequences": ["END", "\n\nEND", "x"]}
    if stream:
        async with client.messages.stream(**asked) as events:
            message = await events.get_final_message()
    else:
        message = await client.messages.create(**asked)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "\n\nEND")
    assert [block.model_dump(exclude_none=True) for block in message.content] == [{"type": "text", "text": "one two"}]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_kept_answer_names_its_stop_sequence_too(fleet: GatewayFleet, stream: bool) -> None:
    fleet.compute.script = until("END")
    body = {**ASKED, "temperature": 0, "stop_sequences": ["END"]}
    answers = []
    async with aiohttp.ClientSession(fleet.url) as session:
        for cache in ("miss", "hit-exact"):
            async with session.post("/v1/messages", json={**body, "stream": stream}) as response:
                assert response.headers["X-Triserve-Cache"] == cache
                answers.append(await response.text())
        # The same words at another door are another answer: there the stop string is no text.
        chat = {"messages": HELLO, "temperature": 0, "max_tokens": 100, "stop": ["END"], "cache": {"mode": "only"}}
        async with session.post("/v1/chat/completions", json=chat) as response:
            assert response.status == 504
    assert all('"stop_sequence"' in answer and '"END"' in answer and "twoEND" not in answer for answer in answers)


async def test_without_stop_sequences_none_is_included(client: AsyncAnthropic, fleet: GatewayFleet) -> None:
    await client.messages.create(**ASKED)
    assert not fleet.compute.submitted[0].stopping.include_stop_string


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "reason"), [("Hello", 3, "max_tokens"), ("x" * 230, 100, "model_context_window_exceeded")]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_cut_says_by_what(client: AsyncAnthropic, prompt: str, max_tokens: int, reason: str, stream: bool) -> None:
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}
    if stream:
        async with client.messages.stream(**asked) as events:
            message = await events.get_final_message()
    else:
        message = await client.messages.create(**asked)
    assert message.stop_reason == reason


async def test_turns_of_every_form_reach_the_template_and_the_assistant_s_last_one_is_gone_on_with(
    client: AsyncAnthropic, fleet: GatewayFleet
) -> None:
    answered = await client.messages.create(**{**ASKED, "max_tokens": 4})
    turns: Any = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "two"}],
        },
        {"role": "user", "content": "three"},
        answered.to_param(),
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "It is"},
    ]
    await client.messages.create(model="tiny", max_tokens=9, system=[{"type": "text", "text": "Be brief"}], messages=turns)
    prompt = "system: Be brief\nuser: one\ntwo\nthree\nassistant: user\nsystem: Be kind\nuser: And?\nassistant: It is"
    assert bytes(fleet.compute.submitted[-1].token_ids).decode() == prompt
    count = await client.messages.count_tokens(model="tiny", system="Be brief", messages=turns)
    assert count.input_tokens == len(prompt)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking is not supported"),
        ({"stop_sequences": [""]}, "stop_sequences has a string of 0 characters"),
        ({"temperature": -1}, "temperature is -1"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "prompt is too long: "),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_not_done_is_refused_by_name_in_the_form_of_these_clients(
    fleet: GatewayFleet, fields: dict[str, Any], says: str
) -> None:
    async with aiohttp.ClientSession(fleet.url) as session, session.post("/v1/messages", json={**ASKED, **fields}) as response:
        answer = await response.json()
        assert (response.status, answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")
        assert says in answer["error"]["message"]
        assert answer["request_id"] == response.headers["X-Request-Id"]
    assert not fleet.compute.submitted


async def test_what_asks_for_nothing_is_let_through(client: AsyncAnthropic) -> None:
    idle: Any = {"tools": [], "tool_choice": {"type": "auto"}, "thinking": {"type": "disabled"}, "service_tier": "auto"}
    headers = {"anthropic-beta": "context-1m-2025-08-07"}
    assert (await client.messages.create(**ASKED, **idle, extra_headers=headers)).stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("error", "expected", "status", "kind"),
    [
        (Overloaded("too many wait"), anthropic.RateLimitError, 429, "rate_limit_error"),
        (Unavailable("the sampler was lost"), anthropic.APIStatusError, 529, "overloaded_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_is_the_clients_exception(
    fleet: GatewayFleet, client: AsyncAnthropic, error: ServiceError, expected: Any, status: int, kind: str, stream: bool
) -> None:
    fleet.compute.script = lambda request: [error]
    with pytest.raises(expected) as caught:
        await client.messages.create(**ASKED, stream=stream)
    assert (caught.value.status_code, caught.value.body["error"]["type"]) == (status, kind)
    assert "retry-after" in caught.value.response.headers
    await eventually(lambda: fleet.active == 0)


async def test_a_failure_after_the_first_token_is_an_error_event(fleet: GatewayFleet, client: AsyncAnthropic) -> None:
    fleet.compute.script = lambda request: [Say("begun", [1]), Unavailable("the sampler was lost")]
    events: list[Any] = []
    with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
        async for event in await client.messages.create(**ASKED, stream=True):
            events.append(event)
    assert events[-1].delta.text == "begun"


async def test_keys_models_and_paths_are_those_of_every_route(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"acme {hashlib.sha256(b'secret').hexdigest()}\n")
    async with running_fleet(api_keys_file=keys) as fleet:
        async with AsyncAnthropic(base_url=fleet.url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError) as caught:
                await client.messages.create(**ASKED)
            assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
        async with AsyncAnthropic(base_url=fleet.url, api_key="secret", max_retries=0) as client:
            assert (await client.messages.create(**ASKED)).stop_reason == "end_turn"
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.create(**{**ASKED, "model": "claude"})
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.count_tokens(model="claude", messages=HELLO)
        assert fleet.compute.submitted[0].tenant == "acme"


async def test_what_the_model_thinks_is_no_text_of_a_message() -> None:
    async with running_fleet(tokenizers=[FakeTokenizer(reasoning_format="think")]) as fleet:
        pieces = ["<think>Hm.", " So</", "think>\n", "It is", " 4."]
        fleet.compute.script = lambda request: [*(Say(piece, [1]) for piece in pieces), Say("", [EOS], common_pb2.FINISH_REASON_STOP)]
        async with AsyncAnthropic(base_url=fleet.url, api_key="none", max_retries=0, timeout=20) as client:
            message: Any = await client.messages.create(**ASKED)
            async with client.messages.stream(**ASKED) as stream:
                assert await stream.get_final_text() == "It is 4."
        assert ([block.text for block in message.content], message.usage.output_tokens) == (["It is 4."], 6)


async def test_an_answer_without_a_word_is_a_message_all_the_same(fleet: GatewayFleet, client: AsyncAnthropic) -> None:
    fleet.compute.script = lambda request: [Say("", [EOS], common_pb2.FINISH_REASON_STOP)]
    events: list[Any] = [event async for event in await client.messages.create(**ASKED, stream=True)]
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
