"""Priorities through the gateway: who may ask for which, and which replica gets them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from tests.fakes.fake_compute import FakeCompute
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.rpc.channel import open_channel
from triserve.rpc.errors import InvalidRequest, Unavailable, from_rpc_error
from triserve.v1 import chat_pb2, chat_pb2_grpc, tokenizer_pb2

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {CHAT: {"messages": [{"role": "user", "content": "Hello"}]}, COMPLETION: {"prompt": "abc"}}
# sha256 of "secret" and of "other".
KEYS = """acme 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b lowest_priority=-5
zorg d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa
"""


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[GatewayFleet]:
    """A replica by priority, behind a gateway with a key that has a grant and one that has none."""
    (tmp_path / "keys").write_text(KEYS)
    async with running_fleet(computes=[FakeCompute(policy="priority")], api_keys_file=tmp_path / "keys", cache=False) as fleet:
        yield fleet


async def ask(fleet: GatewayFleet, route: str = COMPLETION, *, key: str = "secret", **fields: Any) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession(fleet.url, headers={"Authorization": f"Bearer {key}"}) as session,
        session.post(route, json={**BODIES[route], **fields}) as response,
    ):
        return response.status, await response.json()


async def ask_grpc(fleet: GatewayFleet, *, key: str = "secret", **fields: Any) -> None:
    async with open_channel(f"127.0.0.1:{fleet.service.grpc_port}") as channel:
        stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
        request = chat_pb2.ChatRequest(messages=[tokenizer_pb2.ChatMessage(role="user", content="Hello")], **fields)
        async for _ in stub.Chat(request, metadata=(("authorization", f"Bearer {key}"),)):
            pass


def priorities(compute: FakeCompute) -> list[int]:
    return [request.priority for request in compute.submitted]


@pytest.mark.parametrize("route", [CHAT, COMPLETION])
async def test_a_priority_reaches_compute_and_unset_null_and_zero_are_normal(fleet: GatewayFleet, route: str) -> None:
    for fields in ({}, {"priority": None}, {"priority": 0}, {"priority": 10}, {"priority": -5}):
        status, body = await ask(fleet, route, **fields)
        assert status == 200, body
    assert priorities(fleet.compute) == [0, 0, 0, 10, -5]


async def test_every_answer_of_a_request_has_its_priority(fleet: GatewayFleet) -> None:
    assert (await ask(fleet, prompt=["a", "b"], n=2, priority=3))[0] == 200
    assert priorities(fleet.compute) == [3] * 4


@pytest.mark.parametrize(("key", "priority", "lowest"), [("secret", -6, -5), ("other", -1, 0)])
async def test_better_than_the_key_grants_is_refused_with_the_limit(fleet: GatewayFleet, key: str, priority: int, lowest: int) -> None:
    message = f"priority is {priority}, the lowest this client may ask for is {lowest}"
    for route in (CHAT, COMPLETION):
        status, body = await ask(fleet, route, key=key, priority=priority)
        assert status == 400
        assert (body["error"]["type"], body["error"]["param"], body["error"]["message"]) == ("invalid_request_error", "priority", message)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask_grpc(fleet, key=key, priority=priority)
    error = from_rpc_error(caught.value, peer="gateway")
    assert (type(error), error.field, error.message) == (InvalidRequest, "priority", message)
    assert not fleet.compute.submitted
    assert not fleet.tokenizer.asked


async def test_grpc_takes_a_priority_and_refuses_one_out_of_range(fleet: GatewayFleet) -> None:
    await ask_grpc(fleet)
    await ask_grpc(fleet, priority=-5)
    await ask_grpc(fleet, key="other", priority=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask_grpc(fleet, priority=2**31 - 1)
    assert from_rpc_error(caught.value, peer="gateway").field == "priority"
    assert priorities(fleet.compute) == [0, -5, 10]


async def test_without_keys_nobody_is_sooner_than_normal() -> None:
    async with running_fleet(computes=[FakeCompute(policy="priority")]) as fleet:
        status, body = await ask(fleet, priority=-1)
        assert (status, body["error"]["message"]) == (400, "priority is -1, the lowest this client may ask for is 0")
        assert (await ask(fleet, priority=1))[0] == 200
        assert priorities(fleet.compute) == [1]


@pytest.mark.parametrize("policy", ["fcfs", ""])
async def test_where_no_replica_serves_by_priority_it_is_refused_and_not_ignored(policy: str) -> None:
    async with running_fleet(computes=[FakeCompute(policy=policy)]) as fleet:
        status, body = await ask(fleet, priority=1)
        assert (status, body["error"]["param"]) == (400, "priority")
        assert "no compute replica here serves by priority" in body["error"]["message"]
        assert (await ask(fleet, priority=0))[0] == 200


async def test_among_replicas_of_several_policies_those_by_priority_get_the_priorities() -> None:
    computes = [FakeCompute(policy="fcfs"), FakeCompute(policy="priority")]
    async with running_fleet(computes=computes, cache=False) as fleet:
        for priority in (1, 2, 3):
            assert (await ask(fleet, priority=priority))[0] == 200
        assert (priorities(computes[0]), priorities(computes[1])) == ([], [1, 2, 3])
        # The normal priority needs no such replica.
        assert (await ask(fleet))[0] == 200
        assert priorities(computes[0]) == [0]


async def test_a_priority_is_not_tried_again_on_a_replica_that_would_ignore_it() -> None:
    computes = [FakeCompute(policy="fcfs"), FakeCompute(lambda request: [Unavailable("the sampler was lost")], policy="priority")]
    async with running_fleet(computes=computes) as fleet:
        status, body = await ask(fleet, priority=1)
        assert (status, body["error"]["message"]) == (503, "the sampler was lost")
        assert not computes[0].submitted


async def test_a_priority_is_tried_again_on_another_replica_by_priority() -> None:
    failing = FakeCompute(lambda request: [Unavailable("the sampler was lost")], policy="priority")
    computes = [failing, FakeCompute(policy="priority")]
    async with running_fleet(computes=computes) as fleet:
        assert (await ask(fleet, priority=7))[0] == 200
        assert (priorities(computes[0]), priorities(computes[1])) == ([7], [7])


async def test_a_replica_by_priority_that_leaves_takes_the_priorities_with_it() -> None:
    computes = [FakeCompute(policy="fcfs"), FakeCompute(policy="priority")]
    async with running_fleet(computes=computes) as fleet:
        assert (await ask(fleet, priority=1))[0] == 200
        await computes[1].server.health.set_ready(False)
        await eventually(lambda: not fleet.service.gateway.fleet.computes[1].ready)
        assert (await ask(fleet, priority=1, max_tokens=2))[0] == 400
        assert (await ask(fleet, max_tokens=2))[0] == 200
