"""A kubelet's probes: one question, and whether the answer is the good one."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from tests.images.podman import Podman
from triserve.rpc.channel import is_ready, open_channel

Object = dict[str, Any]


async def answers(podman: Podman, container: Object, probe: Object, *, address: str, name: str) -> bool:
    """Whether a probe is answered well within its time.

    Args:
        podman: Runs what is to be executed in the container.
        container: As the manifest has it: its ports have names.
        probe: As the manifest has it.
        address: Of the pod.
        name: Of the running container.
    """
    timeout_s = float(probe.get("timeoutSeconds", 1))
    try:
        if "exec" in probe:
            return await podman.status("exec", name, *probe["exec"]["command"], within_s=timeout_s) == 0
        handler = next(kind for kind in ("grpc", "httpGet", "tcpSocket") if kind in probe)
        port = _port(container, probe[handler]["port"])
        if handler == "grpc":
            async with open_channel(f"{address}:{port}") as channel:
                return await is_ready(channel, probe["grpc"].get("service", ""), timeout_s=timeout_s)
        if handler == "httpGet":
            return await _gets(f"http://{address}:{port}{probe['httpGet'].get('path', '/')}", timeout_s)
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), timeout_s)
        writer.close()
    except (OSError, TimeoutError, aiohttp.ClientError):
        return False
    return True


def _port(container: Object, port: int | str) -> int:
    if isinstance(port, int):
        return port
    return int(next(one["containerPort"] for one in container["ports"] if one["name"] == port))


async def _gets(url: str, timeout_s: float) -> bool:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(timeout_s)) as session, session.get(url) as response:
        return 200 <= response.status < 400
