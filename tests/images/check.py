"""The check itself: all pods start, are confined, answer, and are replaced one by one while an answer streams through them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.deploy.checks.pods import amount
from tests.deploy.manifests import STAGES, load, variables
from tests.fakes.dns_server import DnsServer
from tests.images import confinement
from tests.images.node import DNS_ADDRESS, Node, RunningPod
from tests.images.podman import Podman
from tests.images.stand_ins import redis_for
from tests.images.streams import Stream, tokens_per_second

# An answer is as much longer than preStop as the machine may become faster meanwhile.
_SPARE = 2.5
_KEPT_WITHIN_S = 10.0


async def run(podman: Podman, folder: Path) -> int:
    """Does all of it in namespaces that are there; returns 0 or raises what was not as promised."""
    manifests = load("dev")
    async with _dns() as dns:
        images = await redis_for(podman, manifests, folder)
        for wanted, other in images.items():
            _say(f"there is no image {wanted}: {other} stands in for it")
        node = Node(podman, manifests, folder, dns, images)
        await node.prepare()
        try:
            await _check(node)
        finally:
            await node.close()
    return 0


async def _check(node: Node) -> None:
    pods = [await node.start(pod.name) for pod in node.manifests.pods()]
    await node.until_ready(*pods)
    _say(f"ready: {', '.join(f'{pod.name} after {pod.start_s:.0f} s' for pod in pods)}; every probe answered")
    for pod in pods:
        await _confined(node, pod)
    before = await Stream(node.of("gateway").address, 32).whole()
    _say(f"an answer through all of them: {before!r}")
    await _kept(node)
    for stage in STAGES:
        await _replaced(node, stage)
    after = await Stream(node.of("gateway").address, 32).whole()
    assert after == before, f"the pods that came later answer {after!r}"
    _say("the pods that came later answer the same")
    await _without_redis(node, before)
    for pod in node.pods:
        assert not pod.failed, f"{pod.name} failed {pod.failed[0]}"


async def _confined(node: Node, pod: RunningPod) -> None:
    """Rights of the process, and what is in its image."""
    pid = await node.pid(pod.container)
    found = confinement.problems(pid, memory_bytes=int(amount(pod.pod.main["resources"]["limits"]["memory"])))
    assert not found, f"{pod.name}: {', '.join(found)}"
    found = confinement.tools(pid)
    assert not found, f"{pod.name} has {', '.join(found)}"
    _say(
        f"{pod.name}: as {confinement.USER}, no capability, no new privileges, seccomp, read-only, memory and processes limited; no pip, no compiler"
    )


async def _kept(node: Node) -> None:
    """An answer that may be kept is kept in Redis, by the user and with the rights that the manifests give."""
    redis, url = node.of("redis"), urlsplit(variables(node.manifests.pod("gateway").main)["GATEWAY_REDIS_URL"])
    # A user without a password gets in with any.
    count = ("exec", redis.container, "redis-cli", "--user", str(url.username), "--pass", "any", "--no-auth-warning", "info", "keyspace")
    assert "keys=" not in await node.podman(*count), "nothing was to be kept yet"
    await Stream(node.of("gateway").address, 32, kept=True).whole()
    async with asyncio.timeout(_KEPT_WITHIN_S):
        said = ""
        while "keys=" not in said:
            said = await node.podman(*count)
    _say(f"Redis keeps an answer: {said.splitlines()[-1]}")


async def _replaced(node: Node, stage: str) -> None:
    """As a rollout does: another one is ready, then the old one goes; an answer that it serves at SIGTERM ends whole, and it ends with 0."""
    old = node.of(stage)
    new = await node.start(stage, published=False)
    await node.until_ready(new)
    gateway = old if stage == "gateway" else node.of("gateway")
    speed = await tokens_per_second(gateway.address)
    stream = Stream(gateway.address, int(_SPARE * speed * old.pre_stop_s))
    await stream.begun()
    node.publish(new)
    await node.begin_end(old)
    assert stream.under_way, f"the answer had ended before {old.name} was told to end: {stream.deltas} deltas"
    at_signal = stream.deltas
    await asyncio.gather(node.until_ended(old), stream.whole())
    assert not old.failed, f"{old.name} failed {old.failed[0]}"
    _say(f"{old.name} went, {new.name} came: {stream.deltas - at_signal} of {stream.deltas} deltas after SIGTERM, ended with 0")


async def _without_redis(node: Node, answer: str) -> None:
    redis = node.of("redis")
    await node.begin_end(redis)
    await node.until_ended(redis)
    said = await Stream(node.of("gateway").address, 32).whole()
    assert said == answer, f"without Redis the answer is {said!r}"
    _say("Redis went: the answer is the same without it")


@asynccontextmanager
async def _dns() -> AsyncIterator[DnsServer]:
    """A DNS at the address at which pods look for theirs."""
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(DnsServer, local_addr=(DNS_ADDRESS, 53))
    try:
        yield server
    finally:
        transport.close()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
