"""Everything that runs: a DNS, a gateway and a compute replica that are not scaled, and the deployments that are."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, NamedTuple

import aiohttp

from tests.bench.elastic.deployment import Deployment, Limits
from tests.bench.elastic.manifest import pod_spec
from tests.e2e.pods import Stage
from tests.fakes.dns_server import DnsServer, dns_server
from tests.ports import free_port

_ROOT = Path(__file__).parents[3]
_MODEL = _ROOT / "tests" / "tiny_model"
_READY_S = 120.0
SCALED: tuple[Stage, ...] = ("tokenizer", "sampler")


class Sizes(NamedTuple):
    """Of a cluster on a small machine.

    Attributes:
        overlay: Whose numbers the pods have.
        core_m: What a core is to them: so many millicores of this machine.
        step_ms: Of the model.
        first: Pods of each stage that is scaled, at first.
    """

    overlay: str
    core_m: int
    step_ms: float
    first: Mapping[Stage, int]


class Cluster(NamedTuple):
    """What runs.

    Attributes:
        url: Of the gateway's HTTP.
        scaled: By stage.
        compute: The replica.
        gateway: Its process.
        gateway_metrics: Where that tells of itself.
    """

    url: str
    scaled: Mapping[Stage, Deployment]
    compute: Deployment
    gateway: asyncio.subprocess.Process
    gateway_metrics: str


@asynccontextmanager
async def running_cluster(sizes: Sizes, log: IO[bytes]) -> AsyncIterator[Cluster]:
    """Starts everything; returns when the gateway serves and every pod is ready. What its processes say goes to a log."""
    async with dns_server() as dns:
        scaled = {stage: _limited(stage, sizes, dns, log) for stage in SCALED}
        variables = {
            "COMPUTE_SAMPLERS": scaled["sampler"].target,
            "COMPUTE_MAX_RUNNING_REQUESTS": "4096",
            "COMPUTE_STEP_BUDGET_TOKENS": "8192",
            "CHAIN_STEP_MS": str(sizes.step_ms),
        }
        module, spec = "tests.bench.elastic.chain_compute", pod_spec("compute", sizes.overlay)
        compute = Deployment("compute", module, _MODEL, spec, None, variables, dns, log)
        every = (*scaled.values(), compute)
        gateway = None
        try:
            compute.scale(1)
            for stage, deployment in scaled.items():
                deployment.scale(sizes.first[stage])
            listen, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
            stages = {"GATEWAY_TOKENIZERS": scaled["tokenizer"].target, "GATEWAY_COMPUTES": compute.target}
            gateway = await _start_gateway({"GATEWAY_LISTEN": listen, "GATEWAY_METRICS_LISTEN": metrics, **stages}, log)
            cluster = Cluster(f"http://{listen}", scaled, compute, gateway, metrics)
            await _until_ready(cluster)
            yield cluster
        finally:
            await asyncio.gather(*(deployment.kill() for deployment in every))
            if gateway is not None and gateway.returncode is None:
                gateway.kill()
                await gateway.wait()


def _limited(stage: Stage, sizes: Sizes, dns: DnsServer, log: IO[bytes]) -> Deployment:
    spec = pod_spec(stage, sizes.overlay)
    limits = Limits(*(millicores * sizes.core_m // 1000 for millicores in (spec.request_m, spec.limit_m)))
    return Deployment(stage, f"{stage}_svc", _MODEL, spec, limits, {}, dns, log)


async def _start_gateway(addresses: Mapping[str, str], log: IO[bytes]) -> asyncio.subprocess.Process:
    settings = {
        **addresses,
        "GATEWAY_GRPC_LISTEN": "127.0.0.1:0",
        "GATEWAY_CACHE": "false",
        # Whoever comes is taken, and waits.
        "GATEWAY_MAX_ACTIVE_REQUESTS": "8192",
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "protos")]), **settings}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway", env=environment, cwd=_ROOT, stdout=log, stderr=log)


async def _until_ready(cluster: Cluster) -> None:
    every = (*cluster.scaled.values(), cluster.compute)
    async with asyncio.timeout(_READY_S), aiohttp.ClientSession(cluster.url) as session:
        while not (all(one.num_ready == len(one.pods) for one in every) and await _is_healthy(session)):
            assert cluster.gateway.returncode is None, f"the gateway ended with status {cluster.gateway.returncode}"
            faults = [fault for one in every for fault in one.faults]
            assert not faults, faults
            await asyncio.sleep(0.2)


async def _is_healthy(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/health") as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False
