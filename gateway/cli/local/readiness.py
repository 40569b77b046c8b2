"""Asks parts of the pipeline whether they are alive, and waits until they can do their work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from triserve.rpc.channel import is_ready, open_channel

_POLL_S = 0.1
_ANSWER_S = 2.0


async def grpc_answers(target: str, service: str, timeout_s: float) -> bool:
    """Whether a peer says within so many seconds that it serves.

    Args:
        target: "host:port".
        service: full name of the service; "" asks only whether the process is alive, whatever it is busy with.
        timeout_s: how long to wait for the answer.
    """
    async with open_channel(target) as channel:
        return await is_ready(channel, service, timeout_s=timeout_s)


async def http_answers(url: str, timeout_s: float) -> bool:
    """Whether a GET of the URL is answered within so many seconds, with whatever status."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session:
        return await _http_status(session, url) is not None


async def redis_answers(socket_path: Path, timeout_s: float) -> bool:
    """Whether a Redis on a Unix socket answers a PING within so many seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(socket_path))
            try:
                writer.write(b"PING\r\n")
                return await reader.readline() == b"+PONG\r\n"
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def until_grpc_ready(target: str, service: str) -> None:
    """Returns when the peer says that it serves.

    Args:
        target: "host:port".
        service: full name of the service.
    """
    async with open_channel(target) as channel:
        await _until(lambda: is_ready(channel, service, timeout_s=_ANSWER_S))


async def until_http_ready(url: str) -> None:
    """Returns when a GET of the URL gives 200."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWER_S)) as session:

        async def is_well() -> bool:
            return await _http_status(session, url) == 200

        await _until(is_well)


async def until_redis_ready(socket_path: Path) -> None:
    """Returns when a Redis on a Unix socket answers a PING."""
    await _until(lambda: redis_answers(socket_path, _ANSWER_S))


async def _until(ask: Callable[[], Awaitable[bool]]) -> None:
    while True:
        if await ask():
            return
        await asyncio.sleep(_POLL_S)


async def _http_status(session: aiohttp.ClientSession, url: str) -> int | None:
    """The status that a GET gives; None without an answer."""
    try:
        async with session.get(url) as response:
            return response.status
    except (aiohttp.ClientError, TimeoutError):
        return None
