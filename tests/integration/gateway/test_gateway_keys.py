"""The file of API keys is changed while the gateway serves."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.rpc.channel import open_channel
from triserve.v1 import chat_pb2, chat_pb2_grpc, tokenizer_pb2

BODY = {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 3}


def put(path: Path, **tenants: str) -> None:
    """Writes the file as an editor does: a new one, renamed over the old one."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{tenant} {hashlib.sha256(key.encode()).hexdigest()}\n" for tenant, key in tenants.items()))
    new.rename(path)


async def status_of(session: aiohttp.ClientSession, key: str) -> int:
    async with session.get("/v1/models", headers={"Authorization": f"Bearer {key}"}) as response:
        return response.status


async def status_of_chat(session: aiohttp.ClientSession, key: str) -> int:
    async with session.post("/v1/chat/completions", json=BODY, headers={"Authorization": f"Bearer {key}"}) as response:
        await response.read()
        return response.status


async def code_of(fleet: GatewayFleet, key: str) -> grpc.StatusCode:
    async with open_channel(f"127.0.0.1:{fleet.service.grpc_port}") as channel:
        message = tokenizer_pb2.ChatMessage(role="user", content="Hello")
        call: Any = chat_pb2_grpc.ChatServiceStub(channel).Chat(
            chat_pb2.ChatRequest(messages=[message]), metadata=(("authorization", f"Bearer {key}"),)
        )
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def test_a_key_that_is_taken_out_is_refused_at_both_doors_and_what_it_asked_before_is_answered(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    put(keys, acme="one")
    async with running_fleet(api_keys_file=keys) as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        fleet.compute.let_through(1)
        async with session.post("/v1/chat/completions", json=BODY, headers={"Authorization": "Bearer one"}) as response:
            put(keys, acme="two")
            assert [await status_of(session, key) for key in ("one", "two")] == [401, 200]
            assert await code_of(fleet, "one") is grpc.StatusCode.UNAUTHENTICATED
            fleet.compute.flowing.set()
            assert await code_of(fleet, "two") is grpc.StatusCode.OK
            assert (await response.text()).endswith("data: [DONE]\n\n")


async def test_a_broken_file_leaves_the_keys_there_were(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = tmp_path / "keys"
    put(keys, acme="one")
    async with running_fleet(api_keys_file=keys) as fleet, aiohttp.ClientSession(fleet.url) as session:
        keys.write_text("acme two\n")
        assert [await status_of(session, key) for key in ("one", "two")] == [200, 401]
        assert f"{keys} line 1 is not a tenant" in caplog.text


async def test_a_second_tenant_finds_room_that_a_lone_one_could_have_taken(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    put(keys, acme="one")
    async with running_fleet(api_keys_file=keys, max_active_requests=16, cache=False) as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        put(keys, acme="one", zorg="two")
        assert await status_of(session, "two") == 200
        tasks = [asyncio.create_task(status_of_chat(session, "one")) for _ in range(16)]
        await eventually(lambda: fleet.active + sum(task.done() for task in tasks) == 16, "all have come")
        assert fleet.active == 14
        fleet.compute.flowing.set()
        assert sorted(await asyncio.gather(*tasks)) == [200] * 14 + [429] * 2
