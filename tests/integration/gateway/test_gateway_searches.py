"""Searches and rewritten turns over HTTP: bodies, streams and logs."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest

from gateway.flow.generations.system2_attention import INSTRUCTION
from tests.fakes.fake_compute import FakeCompute, Say, echo
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.rpc.channel import open_channel
from triserve.v1 import chat_pb2, chat_pb2_grpc, common_pb2, compute_pb2, tokenizer_pb2

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
ASKED: Any = {"messages": [{"role": "user", "content": "I am sure it is 5. What is 2 + 2?"}], "system2_attention": True}
TURN = "What is 2 + 2?"


def rewrites(request: compute_pb2.SubmitRequest) -> list[Say]:
    """Writes the turn where it is asked to; else an echo of the prompt."""
    if INSTRUCTION.encode() not in bytes(token for token in request.token_ids if token < 256):
        return echo(request)
    return [Say(TURN, [1, 2]), Say("", [256], common_pb2.FINISH_REASON_STOP)]


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(computes=[FakeCompute(rewrites)]) as fleet:
        yield fleet


@pytest.fixture
async def session(fleet: GatewayFleet) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fleet.url) as session:
        yield session


async def posted(session: aiohttp.ClientSession, route: str, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post(route, json=body) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def test_a_rewritten_turn_is_answered_and_told(session: aiohttp.ClientSession) -> None:
    plain = await posted(session, CHAT, {"messages": [{"role": "user", "content": TURN}]})
    answer = await posted(session, CHAT, ASKED)
    assert answer["choices"] == plain["choices"]
    assert answer["triserve"] == {"system2_prompt": TURN}
    assert answer["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"] + 3
    timed = await posted(session, CHAT, {**ASKED, "return_timeline": True})
    assert timed["triserve"]["system2_prompt"] == TURN and timed["triserve"]["queue_ms"] == 6


async def test_its_stream_tells_it_at_the_end(session: aiohttp.ClientSession) -> None:
    async with session.post(CHAT, json={**ASKED, "stream": True}) as response:
        lines = (await response.text()).split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    said = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert said == f"user: {TURN}\nassistant: "
    assert [chunk.get("triserve") for chunk in chunks] == [None] * (len(chunks) - 1) + [{"system2_prompt": TURN}]


async def test_it_is_answered_and_told_over_grpc_too(fleet: GatewayFleet) -> None:
    channel = open_channel(f"127.0.0.1:{fleet.service.grpc_port}")
    stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
    messages = [tokenizer_pb2.ChatMessage(role="user", content=ASKED["messages"][0]["content"])]
    responses = [one async for one in stub.Chat(chat_pb2.ChatRequest(messages=messages, system2_attention=True))]
    assert "".join(one.text for one in responses) == f"user: {TURN}\nassistant: "
    assert [one.system2_prompt for one in responses if one.HasField("system2_prompt")] == [TURN] and responses[-1].system2_prompt
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        tools = [tokenizer_pb2.FunctionTool(name="f")]
        _ = [one async for one in stub.Chat(chat_pb2.ChatRequest(messages=messages, system2_attention=True, tools=tools))]
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    await channel.close()


async def test_neither_a_turn_nor_what_became_of_it_is_logged(
    session: aiohttp.ClientSession, fleet: GatewayFleet, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await posted(session, CHAT, ASKED)
        await posted(session, COMPLETION, {"prompt": "a secret", "use_beam_search": True, "n": 2, "max_tokens": 3})
        await eventually(lambda: fleet.active == 0)
    assert "2 + 2" not in caplog.text and "secret" not in caplog.text


async def test_the_best_of_several_answers_has_no_log_probabilities_unless_they_are_asked_for(
    session: aiohttp.ClientSession, fleet: GatewayFleet
) -> None:
    body = {"prompt": "ab", "best_of": 3, "n": 2}
    answer = await posted(session, COMPLETION, body)
    assert [(one["index"], one["text"], one["logprobs"]) for one in answer["choices"]] == [(0, "ab", None), (1, "ab", None)]
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 9,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    with_logprobs = await posted(session, COMPLETION, {**body, "logprobs": 1})
    assert [len(one["logprobs"]["tokens"]) for one in with_logprobs["choices"]] == [3, 3]
    assert len(fleet.compute.submitted) == 6


async def test_beams_are_asked_for_one_token_at_a_time_and_streamed_at_the_end(session: aiohttp.ClientSession, fleet: GatewayFleet) -> None:
    body = {"prompt": "ab", "use_beam_search": True, "n": 2, "max_tokens": 3, "logprobs": 1, "return_token_ids": True}
    whole = await posted(session, COMPLETION, body)
    assert [len(choice["token_ids"]) for choice in whole["choices"]] == [3, 3]
    assert whole["usage"]["completion_tokens"] == len(fleet.compute.submitted) == 1 + 2 + 2
    assert {request.stopping.max_tokens for request in fleet.compute.submitted} == {1}
    for choice in whole["choices"]:
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == bytes(choice["token_ids"]).decode()
    async with session.post(COMPLETION, json={**body, "stream": True}) as response:
        lines = (await response.text()).split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [choice["text"] for choice in whole["choices"]]
