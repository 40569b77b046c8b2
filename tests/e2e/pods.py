"""The stages as a cluster runs them: real processes, each at an address of its own and the port of its stage, found by names in a DNS."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiohttp

from tests.fakes.dns_server import DnsServer, dns_server
from tests.ports import free_port
from triserve.rpc.channel import is_ready, open_channel
from triserve.rpc.tls.ends import ClientTls

Stage = Literal["tokenizer", "sampler", "compute"]
SERVICES = {"tokenizer": "triserve.v1.TokenizerService", "sampler": "triserve.v1.SamplerService", "compute": "triserve.v1.ComputeService"}
NETWORKS = {"tokenizer": 11, "sampler": 12, "compute": 13}
_ROOT = Path(__file__).parents[2]
_START_S = 90.0
_END_S = 60.0
# Some of the lookups of those who have to hear of newcomers; in the manifests it is ten seconds.
PRE_STOP_S = 1.0


class Pod(NamedTuple):
    """One process."""

    stage: Stage
    address: str
    model: Path
    process: asyncio.subprocess.Process


class PodsTls(NamedTuple):
    """How a test speaks to processes that speak TLS."""

    # To each stage, as its clients do.
    ends: Mapping[str, ClientTls]
    # What the gateway's certificate is checked against.
    ca_file: Path


@dataclass
class Pods:
    """All processes, and the name of each stage.

    Attributes:
        url: Of the gateway's HTTP.
        tls: None = in plain text.
        variables: Of the environment of each stage's processes, and of the gateway's.
    """

    dns: DnsServer
    variables: Mapping[str, Mapping[str, str]]
    url: str = ""
    tls: PodsTls | None = None
    alive: list[Pod] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=lambda: {stage: free_port() for stage in SERVICES})
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def name(self, stage: Stage) -> str:
        """As another stage is told where this one is."""
        return f"dns://{self.dns.authority}/{stage}.test:{self.ports[stage]}"

    def of(self, stage: Stage) -> list[Pod]:
        """Those of one stage."""
        return [pod for pod in self.alive if pod.stage == stage]

    async def add(self, stage: Stage, model: Path) -> Pod:
        """Starts one, and publishes it when it is ready, as a headless Service does."""
        host = f"127.{NETWORKS[stage]}.0.{next(self._numbers)}"
        address = f"{host}:{self.ports[stage]}"
        prefix = stage.upper()
        settings = {f"{prefix}_LISTEN": address, f"{prefix}_MODEL": str(model)}
        if stage == "compute":
            settings |= {"COMPUTE_SAMPLERS": self.name("sampler"), "COMPUTE_DNS_INTERVAL_S": "0.2", "COMPUTE_THREADS": "1"}
        pod = Pod(stage, address, model, await self._start(f"{stage}_svc", {**settings, **self.variables.get(stage, {})}))
        self.alive.append(pod)
        async with asyncio.timeout(_START_S):
            while not await self._is_ready(stage, address):
                assert pod.process.returncode is None, f"{stage} has ended with status {pod.process.returncode}"
                await asyncio.sleep(0.05)
        self._publish(stage)
        return pod

    async def remove(self, pod: Pod) -> None:
        """Takes one out of DNS and, as the manifests' preStop has it, a while later tells it to end. It must end well."""
        self.alive.remove(pod)
        self._publish(pod.stage)
        await asyncio.sleep(PRE_STOP_S)
        pod.process.send_signal(signal.SIGTERM)
        status = await asyncio.wait_for(pod.process.wait(), _END_S)
        assert status == 0, f"{pod.stage} {pod.address} ended with status {status}"

    async def start_gateway(self, **settings: str) -> asyncio.subprocess.Process:
        """Starts the gateway; does not wait for it to be ready."""
        port = free_port()
        self.url = f"{'http' if self.tls is None else 'https'}://127.0.0.1:{port}"
        own = {
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "GATEWAY_GRPC_LISTEN": "127.0.0.1:0",
            "GATEWAY_TOKENIZERS": self.name("tokenizer"),
            "GATEWAY_COMPUTES": self.name("compute"),
            "GATEWAY_DNS_INTERVAL_S": "0.2",
            "GATEWAY_CACHE": "false",
            **settings,
        }
        return await self._start("gateway", {**own, **self.variables.get("gateway", {})})

    async def until_ready(self) -> None:
        """Returns when the gateway serves."""
        async with asyncio.timeout(_START_S), self.session() as session:
            while True:
                try:
                    async with session.get("/health") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.05)

    def session(self) -> aiohttp.ClientSession:
        """With the gateway."""
        trusted = True if self.tls is None else ssl.create_default_context(cafile=self.tls.ca_file)
        return aiohttp.ClientSession(self.url, connector=aiohttp.TCPConnector(ssl=trusted))

    async def _is_ready(self, stage: Stage, address: str) -> bool:
        async with open_channel(address, None if self.tls is None else self.tls.ends[stage]) as channel:
            return await is_ready(channel, SERVICES[stage], timeout_s=2.0)

    def _publish(self, stage: Stage) -> None:
        self.dns.records[f"{stage}.test", "A"] = [pod.address.partition(":")[0] for pod in self.of(stage)]

    async def _start(self, module: str, settings: Mapping[str, str]) -> asyncio.subprocess.Process:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "protos")]), **settings}
        return await asyncio.create_subprocess_exec(sys.executable, "-m", module, env=environment, cwd=_ROOT)


@asynccontextmanager
async def running_pods(
    variables: Mapping[str, Mapping[str, str]] | None = None, *, tls: PodsTls | None = None, **gateway: str
) -> AsyncIterator[Pods]:
    """A DNS and a gateway, and room for processes; everything is ended at the end.

    Args:
        variables: Of each stage's processes.
        tls: See `Pods`.
        gateway: Settings of the gateway.
    """
    async with dns_server() as dns:
        pods = Pods(dns, variables or {}, tls=tls)
        process = await pods.start_gateway(**gateway)
        try:
            yield pods
        finally:
            for one in (process, *(pod.process for pod in pods.alive)):
                if one.returncode is None:
                    one.kill()
                await one.wait()


class StreamingClients:
    """Clients that stream one greedy answer after the other.

    Attributes:
        answers: Every answer that was got, in order.
        failures: Whatever else came.
    """

    def __init__(self, url: str, count: int, *, max_tokens: int = 24) -> None:
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._url = url
        self._max_tokens = max_tokens
        self._ending = False
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(count)]

    async def _run(self, number: int) -> None:
        async with aiohttp.ClientSession(self._url) as session:
            while not self._ending:
                try:
                    await self._ask(session)
                except (aiohttp.ClientError, OSError) as error:
                    self.failures.append(repr(error))

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        body = {"prompt": "The river", "max_tokens": self._max_tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        async with session.post("/v1/completions", json=body) as response:
            answer = await response.json()
        if response.status != 200:
            self.failures.append(str(answer))
        else:
            self.answers.append(str(answer["choices"][0]["token_ids"]))

    async def end(self) -> None:
        """Lets every client have its last answer."""
        self._ending = True
        await asyncio.gather(*self._tasks)
