"""Waits until parts of the pipeline can do their work."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from triserve.rpc.channel import is_ready, open_channel

_POLL_S = 0.1
_ANSWER_S = 2.0


async def until_grpc_ready(target: str, service: str) -> None:
    """Returns when the peer says that it serves.

    Args:
        target: "host:port".
        service: full name of the service.
    """
    channel = open_channel(target)
    try:
        while True:
            if await is_ready(channel, service, timeout_s=_ANSWER_S):
                return
            await asyncio.sleep(_POLL_S)
    finally:
        await channel.close()


async def until_http_ready(url: str) -> None:
    """Returns when a GET of the URL gives 200."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWER_S)) as session:
        while True:
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(_POLL_S)


async def until_redis_ready(socket_path: Path) -> None:
    """Returns when a Redis on a Unix socket answers a PING."""
    while True:
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(str(socket_path))
                try:
                    writer.write(b"PING\r\n")
                    if await reader.readline() == b"+PONG\r\n":
                        return
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            pass
        await asyncio.sleep(_POLL_S)
