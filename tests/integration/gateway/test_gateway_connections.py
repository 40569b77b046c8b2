"""Connections as they come: idle, cut, half closed, or no HTTP at all."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet

BODY = json.dumps({"prompt": "abc"}).encode()
STREAM = json.dumps({"prompt": "abc", "stream": True}).encode()


def post(body: bytes, version: str = "1.1") -> bytes:
    head = (
        f"POST /v1/completions HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def connected(fleet: GatewayFleet) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.service.port)
    try:
        yield reader, writer
    finally:
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/completions HTTP/1.1\r\nHost: lo", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_a_connection_without_a_request_is_closed_in_time(sent: bytes) -> None:
    async with running_fleet(idle_timeout_s=0.1) as fleet, connected(fleet) as (reader, writer):
        writer.write(sent)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200") == sent.startswith(b"GET")


async def test_an_answer_may_take_longer_than_a_connection_may_be_idle() -> None:
    async with running_fleet(idle_timeout_s=0.05) as fleet, connected(fleet) as (reader, writer):
        fleet.compute.flowing.clear()
        writer.write(post(BODY))
        await eventually(lambda: fleet.compute.submitted)
        await asyncio.sleep(0.15)
        fleet.compute.flowing.set()
        assert b'"text": "abc"' in await reader.read()


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_a_client_that_closes_its_half_gets_its_answer(body: bytes) -> None:
    async with running_fleet() as fleet, connected(fleet) as (reader, writer):
        fleet.compute.flowing.clear()
        writer.write(post(body))
        writer.write_eof()
        await eventually(lambda: fleet.compute.submitted)
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n", "it is asked whether it is there"
        fleet.compute.flowing.set()
        answer = await reader.read()
        assert b"HTTP/1.1 200 OK" in answer
        assert b"[DONE]" in answer or b'"text": "abc"' in answer
        await eventually(lambda: fleet.active == 0)


async def test_a_client_that_asks_and_closes_its_half_at_once_gets_its_answer() -> None:
    async with running_fleet() as fleet, connected(fleet) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        writer.write_eof()
        assert (await reader.read()).rpartition(b"\r\n")[2].startswith(b'{"status": "ready"')


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_a_client_that_leaves_is_noticed_before_anything_is_sent(body: bytes, version: str) -> None:
    async with running_fleet() as fleet:
        fleet.compute.flowing.clear()
        async with connected(fleet) as (_, writer):
            writer.write(post(body, version))
            await eventually(lambda: fleet.compute.submitted)
        await eventually(lambda: fleet.compute.cancelled == [1])
        await eventually(lambda: fleet.active == 0)


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_body_that_ends_too_early_ends_its_connection(at_once: bool) -> None:
    async with running_fleet() as fleet, connected(fleet) as (reader, writer):
        writer.write(post(BODY)[:-3])
        if not at_once:
            await eventually(lambda: fleet.service.gateway.bodies.budget.used > 0)
        writer.write_eof()
        assert b"HTTP/1.1 200" not in await reader.read()
        await eventually(lambda: fleet.service.gateway.bodies.budget.used == 0)


async def test_what_is_no_http_is_refused_in_our_form_and_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    garbage = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nA b: c\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ]
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        with caplog.at_level(logging.INFO):
            for sent in garbage * 3:
                async with connected(fleet) as (reader, writer):
                    writer.write(sent + b"\r\n\r\n")
                    answer = await reader.read()
                assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), answer
                assert b"Server: triserve\r\n" in answer
                assert json.loads(answer.rpartition(b"\r\n")[2])["error"]["type"] == "invalid_request_error"
        lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [(record.levelname, record.exc_info) for record in lines] == [("WARNING", None)]
        assert "1 requests were no HTTP, the latest from 127.0.0.1: " in lines[0].getMessage()
        async with session.get("/health") as response:
            assert response.status == 200
