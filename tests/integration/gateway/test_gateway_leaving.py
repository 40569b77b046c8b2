"""Who leaves, and when: clients at every stage, clients that do not read, requests out of time, the gateway itself."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.fakes.fake_compute import Say
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.v1 import common_pb2, compute_pb2

COMPLETION = "/v1/completions"


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    # Nothing but the client's own going tells: no comment is written meanwhile.
    async with running_fleet(keep_alive_s=3600.0) as fleet:
        yield fleet


@pytest.fixture
async def session(fleet: GatewayFleet) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fleet.url) as session:
        yield session


def ask(session: aiohttp.ClientSession, **body: Any) -> asyncio.Task[Any]:
    """Asks in the background; the task's result is the list of lines of the body."""

    async def asking() -> Any:
        async with session.post(COMPLETION, json={"prompt": "abc", **body}) as response:
            return response.status, [line.decode().rstrip() async for line in response.content]

    return asyncio.create_task(asking())


async def leave(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_tokenizing_cancels_there_and_never_reaches_compute(
    fleet: GatewayFleet, session: aiohttp.ClientSession, stream: bool
) -> None:
    fleet.tokenizer.flowing.clear()
    task = ask(session, stream=stream)
    await eventually(lambda: fleet.tokenizer.asked)
    await leave(task)
    await eventually(lambda: fleet.tokenizer.cancelled == [fleet.tokenizer.asked[0].request], "the tokenizer was told")
    assert fleet.active == 0
    fleet.tokenizer.flowing.set()
    await ask(session)
    assert len(fleet.compute.submitted) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_queued_cancels_in_compute(fleet: GatewayFleet, session: aiohttp.ClientSession, stream: bool) -> None:
    fleet.compute.flowing.clear()
    task = ask(session, stream=stream, n=2)
    await eventually(lambda: len(fleet.compute.submitted) == 2)
    await leave(task)
    await eventually(lambda: sorted(fleet.compute.cancelled) == [1, 2], "compute was told of both")
    assert fleet.active == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_decoding_cancels_in_compute(fleet: GatewayFleet, session: aiohttp.ClientSession, stream: bool) -> None:
    fleet.compute.flowing.clear()
    fleet.compute.let_through(2)
    task = ask(session, stream=stream)
    await eventually(lambda: fleet.service.gateway.fleet.computes[0].in_flight == 1)
    await leave(task)
    await eventually(lambda: fleet.compute.cancelled == [1])
    assert fleet.service.gateway.fleet.computes[0].in_flight == 0


async def test_leaving_after_the_end_cancels_nothing(fleet: GatewayFleet, session: aiohttp.ClientSession) -> None:
    status, lines = await ask(session, stream=True)
    assert (status, lines[-2]) == (200, "data: [DONE]")
    await ask(session)
    assert fleet.compute.cancelled == []
    await eventually(lambda: fleet.service.gateway.fleet.computes[0].in_flight == 0)


async def test_many_leavers_leave_no_task_behind(fleet: GatewayFleet, session: aiohttp.ClientSession) -> None:
    await ask(session)
    fleet.compute.flowing.clear()
    before = len(asyncio.all_tasks())
    tasks = [ask(session, stream=bool(n % 2)) for n in range(40)]
    await eventually(lambda: len(fleet.compute.submitted) == 41)
    for task in tasks:
        await leave(task)
    await eventually(lambda: len(fleet.compute.cancelled) == 40)
    await eventually(lambda: fleet.active == 0 and len(asyncio.all_tasks()) <= before, "no task is left")


async def test_one_over_the_limit_is_refused_at_once_and_admitted_later() -> None:
    async with running_fleet(max_active_requests=2) as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        tasks = [ask(session), ask(session)]
        await eventually(lambda: len(fleet.compute.submitted) == 2)
        async with session.post(COMPLETION, json={"prompt": "a"}) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "1"
            assert (await response.json())["error"]["type"] == "rate_limit_error"
        assert len(fleet.tokenizer.asked) == 2
        fleet.compute.flowing.set()
        await asyncio.gather(*tasks)
        assert (await ask(session, n=2))[0] == 200
        assert (await ask(session, n=3))[0] == 429
        assert fleet.active == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_out_of_time_is_504_and_cancelled(stream: bool) -> None:
    async with running_fleet(request_timeout_s=0.15) as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        status, lines = await ask(session, stream=stream)
        assert status == 504
        assert json.loads(lines[0])["error"]["code"] == "deadline_exceeded"
        await eventually(lambda: fleet.compute.cancelled == [1])
        assert 0 < fleet.compute.submitted[0].deadline_ms <= 150


async def test_a_stream_out_of_time_ends_in_an_error_event() -> None:
    async with running_fleet(request_timeout_s=0.3) as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        fleet.compute.let_through(1)
        status, lines = await ask(session, stream=True)
        assert status == 200
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
        await eventually(lambda: fleet.compute.cancelled == [1])


async def test_a_silent_stream_is_kept_alive_by_comments() -> None:
    async with running_fleet(keep_alive_s=0.02) as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        async with session.post(COMPLETION, json={"prompt": "a", "stream": True}) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            assert await response.content.readline() == b": waiting\n"
            fleet.compute.flowing.set()
            assert (await response.content.read()).endswith(b"data: [DONE]\n\n")


def _long_answer(request: compute_pb2.SubmitRequest) -> list[Say]:
    return [Say("x" * 20_000, [1]) for _ in range(1000)] + [Say("", [], common_pb2.FINISH_REASON_LENGTH)]


def _deaf_client(fleet: GatewayFleet, *, stream: bool = True) -> socket.socket:
    """A client that asks for a long answer and never reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", fleet.service.port))
    body = json.dumps({"prompt": "a", "stream": stream, "max_tokens": 2000})
    client.sendall(
        f"POST {COMPLETION} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return client


async def test_a_client_that_does_not_read_is_cut_and_cancelled() -> None:
    async with running_fleet(stall_timeout_s=0.2) as fleet:
        fleet.compute.flowing.clear()
        fleet.compute.script = _long_answer
        with _deaf_client(fleet):
            await eventually(lambda: fleet.compute.submitted)
            fleet.compute.let_through(500)
            await eventually(lambda: fleet.compute.cancelled == [1], "compute was told")
            await eventually(lambda: fleet.active == 0)


async def test_a_client_that_does_not_read_a_whole_answer_is_cut() -> None:
    async with running_fleet(stall_timeout_s=0.2, idle_timeout_s=3600) as fleet:
        fleet.compute.script = _long_answer
        with _deaf_client(fleet, stream=False):
            await eventually(lambda: fleet.compute.submitted)
            assert fleet.service.num_connections == 1
            await eventually(lambda: fleet.active == 0)
            await eventually(lambda: fleet.service.num_connections == 0, "its connection is over")


async def test_a_client_that_does_not_read_delays_nobody(fleet: GatewayFleet, session: aiohttp.ClientSession) -> None:
    fleet.compute.script = _long_answer
    with _deaf_client(fleet):
        await eventually(
            lambda: fleet.service.gateway.fleet.computes[0].in_flight == 0 and fleet.compute.submitted, "the long answer is made"
        )
        fleet.compute.script = lambda request: [Say("short", [1], common_pb2.FINISH_REASON_STOP)]
        status, lines = await ask(session, stream=True)
        assert status == 200
        assert lines[-2] == "data: [DONE]"
        assert fleet.active == 1
    await eventually(lambda: fleet.active == 0)


async def test_draining_lets_streams_end_and_refuses_new_requests() -> None:
    async with running_fleet(drain_timeout_s=20) as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        fleet.compute.let_through(1)
        task = ask(session, stream=True)
        await eventually(lambda: fleet.compute.submitted)
        stopping = asyncio.create_task(fleet.service.stop())
        await eventually(lambda: fleet.service.gateway.admission.closed)
        async with session.get("/health") as response:
            assert response.status == 503
            assert (await response.json())["status"] == "draining"
        async with session.post(COMPLETION, json={"prompt": "a"}) as response:
            assert response.status == 503
            assert "Retry-After" in response.headers
        fleet.compute.flowing.set()
        status, lines = await task
        assert (status, lines[-2]) == (200, "data: [DONE]")
        await stopping


async def test_draining_ends_what_takes_too_long_with_an_error_event() -> None:
    async with running_fleet(drain_timeout_s=0) as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        fleet.compute.let_through(1)
        async with session.post(COMPLETION, json={"prompt": "abc", "stream": True}) as begun:
            assert json.loads((await begun.content.readline()).removeprefix(b"data: "))["choices"][0]["text"] == "a"
            waiting = ask(session)
            await eventually(lambda: len(fleet.compute.submitted) == 2)
            await fleet.service.stop()
            events = (await begun.content.read()).decode().strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "unavailable"
        assert (await waiting)[0] == 503


async def test_a_gateway_that_stops_leaves_no_task_behind() -> None:
    before = len(asyncio.all_tasks())
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        await ask(session, stream=True)
    await eventually(lambda: len(asyncio.all_tasks()) <= before, "every task has ended")
