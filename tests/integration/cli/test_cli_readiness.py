"""A part is asked whether it is alive: one that accepts connections and says nothing is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.cli.local.readiness import grpc_answers, http_answers, redis_answers
from triserve.rpc.server import ServiceServer

ENOUGH_S = 30.0
SHORT_S = 0.05


@pytest.fixture
async def silent(tmp_path: Path) -> AsyncIterator[tuple[int, Path]]:
    """A port and a socket at which connections are accepted and nothing is said, as by a stopped process."""

    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    path = tmp_path / "silent.sock"
    servers = [await asyncio.start_server(keep_silent, "127.0.0.1", 0), await asyncio.start_unix_server(keep_silent, str(path))]
    yield servers[0].sockets[0].getsockname()[1], path
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_what_accepts_connections_and_says_nothing_does_not_answer(silent: tuple[int, Path]) -> None:
    port, path = silent
    assert not await grpc_answers(f"127.0.0.1:{port}", "", SHORT_S)
    assert not await http_answers(f"http://127.0.0.1:{port}/health", SHORT_S)
    assert not await redis_answers(path, SHORT_S)


async def test_what_is_not_there_does_not_answer(tmp_path: Path) -> None:
    assert not await grpc_answers("127.0.0.1:1", "", SHORT_S)
    assert not await http_answers("http://127.0.0.1:1/health", SHORT_S)
    assert not await redis_answers(tmp_path / "nothing.sock", SHORT_S)


async def test_a_service_that_is_not_ready_is_alive() -> None:
    server = ServiceServer(["a.Service"], lambda _: None, "127.0.0.1:0")
    await server.start()
    target = f"127.0.0.1:{server.port}"
    assert await grpc_answers(target, "", ENOUGH_S)
    assert not await grpc_answers(target, "a.Service", ENOUGH_S)
    await server.health.set_ready(True)
    assert await grpc_answers(target, "a.Service", ENOUGH_S)
    await server.stop(0)


@pytest.mark.parametrize("status", [200, 503])
async def test_a_gateway_that_is_not_ready_is_alive(status: int) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    assert await http_answers(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health", ENOUGH_S)
    server.close()
    await server.wait_closed()
