"""A request's priority, from the client's key to the order in which a replica serves."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from typing import Any

import aiohttp
import grpc
import pytest

from tests.e2e.local_pipeline import Pipeline, wait_until
from triserve.rpc.errors import InvalidRequest, from_rpc_error
from triserve.v1 import chat_pb2, chat_pb2_grpc, common_pb2, tokenizer_pb2

ENDLESS = {"max_tokens": 1500, "min_tokens": 1500, "ignore_eos": True, "temperature": 0}
SHORT = {"max_tokens": 4, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def by_priority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A replica that serves by priority and runs one request at a time, behind a gateway with keys."""
    keys = tmp_path_factory.mktemp("gateway") / "keys"
    urgent, plain = (hashlib.sha256(key.encode()).hexdigest() for key in ("urgent", "plain"))
    keys.write_text(f"pager {urgent} lowest_priority=-10\nbatch {plain}\n")
    environment = {"COMPUTE_POLICY": "priority", "COMPUTE_MAX_RUNNING_REQUESTS": "1", "GATEWAY_API_KEYS_FILE": str(keys)}
    pipeline = Pipeline(["--dtype", "float32"], environment=environment)
    pipeline.start()
    yield pipeline
    pipeline.stop()


async def _post(session: aiohttp.ClientSession, pipeline: Pipeline, key: str, **body: Any) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {key}", "Cache-Control": "no-store"}
    async with session.post(f"{pipeline.url}/v1/completions", json=body, headers=headers) as response:
        return response.status, await response.json()


async def _until(pipeline: Pipeline, *, running: int, waiting: int) -> None:
    def holds() -> bool:
        (load,) = pipeline.loads()
        return (load.running_requests, load.waiting_requests) == (running, waiting)

    await asyncio.to_thread(wait_until, holds, f"{running} running, {waiting} waiting")


async def _leave(pipeline: Pipeline, *requests: asyncio.Task[Any]) -> None:
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    await _until(pipeline, running=0, waiting=0)


async def test_an_urgent_request_is_answered_before_those_that_came_earlier(by_priority: Pipeline) -> None:
    async with aiohttp.ClientSession() as session:
        running = asyncio.create_task(_post(session, by_priority, "plain", prompt=[301, 302], **ENDLESS))
        await _until(by_priority, running=1, waiting=0)
        waiting = asyncio.create_task(_post(session, by_priority, "plain", prompt=[303, 304], **ENDLESS))
        await _until(by_priority, running=1, waiting=1)
        status, body = await _post(session, by_priority, "urgent", prompt=[305, 306], priority=-10, **SHORT)
        assert (status, body["usage"]["completion_tokens"]) == (200, 4)
        assert not running.done() and not waiting.done()
        await _leave(by_priority, running, waiting)


async def test_a_request_that_steps_back_waits_for_those_that_come_later(by_priority: Pipeline) -> None:
    async with aiohttp.ClientSession() as session:
        running = asyncio.create_task(_post(session, by_priority, "plain", prompt=[301, 302], **ENDLESS))
        await _until(by_priority, running=1, waiting=0)
        back = asyncio.create_task(_post(session, by_priority, "plain", prompt=[303, 304], priority=10, **ENDLESS))
        await _until(by_priority, running=1, waiting=1)
        normal = asyncio.create_task(_post(session, by_priority, "plain", prompt=[305, 306], **SHORT))
        await _until(by_priority, running=1, waiting=2)
        running.cancel()
        assert (await normal)[0] == 200
        assert not back.done()
        await _leave(by_priority, running, back)


async def test_a_priority_the_key_does_not_grant_is_refused_at_both_doors(by_priority: Pipeline) -> None:
    async with aiohttp.ClientSession() as session:
        status, body = await _post(session, by_priority, "plain", prompt=[301, 302], priority=-1, **SHORT)
    assert (status, body["error"]["param"]) == (400, "priority")
    request = chat_pb2.ChatRequest(
        messages=[tokenizer_pb2.ChatMessage(role="user", content="Hello")],
        stopping=common_pb2.StoppingParams(max_tokens=1),
        priority=-1,
        bypass_cache=True,
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{by_priority.grpc_port}") as channel:
        stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Chat(request, metadata=(("authorization", "Bearer plain"),), timeout=60).read()
        error = from_rpc_error(caught.value, peer="gateway")
        assert (type(error), error.field) == (InvalidRequest, "priority")
        answer = await stub.Chat(request, metadata=(("authorization", "Bearer urgent"),), timeout=60).read()
    assert answer.token_ids
