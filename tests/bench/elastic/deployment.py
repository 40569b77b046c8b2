"""A Deployment and its headless Service: pods of one stage that are probed, published in DNS and taken down as Kubernetes does it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from tests.bench.elastic.cpu_quota import CpuQuota
from tests.bench.elastic.manifest import PodSpec
from tests.e2e.pods import SERVICES, Stage
from tests.fakes.dns_server import DnsServer
from tests.ports import free_port
from triserve.rpc.channel import is_ready, open_channel

_ROOT = Path(__file__).parents[3]
# Until it runs: a node is found, and an init container has fetched the small files of the model.
_SCHEDULING_S = 3.0
# Importing and loading take as much processor whatever a core is here, so a pod that starts has more than its limit: it takes about as long as with cores.
_STARTING_M = 200
# Away from those of the end-to-end tests.
_NETWORKS = {"tokenizer": 31, "sampler": 32, "compute": 33}


class Limits(NamedTuple):
    """Of each pod's CPU, millicores."""

    request_m: int
    limit_m: int


@dataclass
class Pod:
    """One process.

    Attributes:
        host: Its address; ports are its stage's.
        created_at: Monotonic seconds.
        ready_since: Of the readiness that lasts; None = it is not ready.
        left_at: When it was told to go; None = it was not.
        process: None before it is started.
    """

    name: str
    host: str
    created_at: float
    ready_since: float | None = None
    left_at: float | None = None
    process: asyncio.subprocess.Process | None = None
    quota: CpuQuota | None = None
    failures: int = 0


class Gone(NamedTuple):
    """A pod that was taken away.

    Attributes:
        drained_s: From SIGTERM to its end.
        status: Its exit status; negative = killed by that signal.
    """

    name: str
    drained_s: float
    status: int


@dataclass
class Deployment:
    """All pods of a stage.

    Attributes:
        stage: Whose.
        module: What `python -m` runs.
        model: Its folder.
        spec: Of the manifest.
        limits: Instead of the manifest's; None = no limit.
        variables: Of the environment, besides addresses and model.
        dns: Where pods are published.
        log: Where they write.
        pods: Those that are to stay.
        leaving: Those that were told to go.
        gone: Those that went.
        faults: What Kubernetes would have started again.
    """

    stage: Stage
    module: str
    model: Path
    spec: PodSpec
    limits: Limits | None
    variables: Mapping[str, str]
    dns: DnsServer
    log: IO[bytes]
    pods: list[Pod] = field(default_factory=list)
    leaving: list[Pod] = field(default_factory=list)
    gone: list[Gone] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._port, self.metrics_port = free_port(), free_port()
        self._publish()

    @property
    def target(self) -> str:
        """As other stages are told where this one is."""
        return f"dns://{self.dns.authority}/{self.stage}.test:{self._port}"

    @property
    def num_ready(self) -> int:
        """Pods that take requests."""
        return sum(pod.ready_since is not None for pod in self.pods)

    def scale(self, count: int) -> None:
        """Has so many pods from now on. Those that are not ready go first, and then the youngest, as a ReplicaSet has it."""
        while len(self.pods) < count:
            number = next(self._numbers)
            pod = Pod(f"{self.stage}-{number}", f"127.{_NETWORKS[self.stage]}.0.{number}", time.monotonic())
            self.pods.append(pod)
            self._tasks[pod.name] = asyncio.create_task(self._live(pod))
        by_worth = sorted(self.pods, key=lambda pod: (pod.ready_since is None, pod.created_at))
        for pod in by_worth[count:]:
            self.pods.remove(pod)
            self.leaving.append(pod)
            pod.left_at = time.monotonic()
        self._publish()

    async def kill(self) -> None:
        """Ends everything at once."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for pod in (*self.pods, *self.leaving):
            if pod.process is not None and pod.process.returncode is None:
                pod.process.kill()
                await pod.process.wait()
            if pod.quota is not None:
                pod.quota.remove()

    async def _live(self, pod: Pod) -> None:
        """From its start to its end."""
        await self._start(pod)
        assert pod.process is not None, "it is started"
        probing = asyncio.create_task(self._probe(pod))
        try:
            while pod.left_at is None:
                if pod.process.returncode is not None:
                    self.faults.append(f"{pod.name} ended with status {pod.process.returncode} by itself")
                    return
                await asyncio.sleep(0.1)
            await self._take_down(pod)
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)

    async def _start(self, pod: Pod) -> None:
        await asyncio.sleep(_SCHEDULING_S)
        prefix = self.stage.upper()
        own = {
            f"{prefix}_LISTEN": f"{pod.host}:{self._port}",
            f"{prefix}_METRICS_LISTEN": f"{pod.host}:{self.metrics_port}",
            f"{prefix}_MODEL": str(self.model),
        }
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "protos")]), **self.spec.drain, **own}
        command: tuple[str, ...] = (sys.executable, "-m", self.module)
        if self.limits is not None:
            pod.quota = CpuQuota(pod.name, _STARTING_M)
            command = pod.quota.command(command)
        pod.process = await asyncio.create_subprocess_exec(
            *command, env={**environment, **self.variables}, cwd=_ROOT, stdout=self.log, stderr=self.log
        )

    async def _probe(self, pod: Pod) -> None:
        """As the kubelet does: until it has started, then again and again whether it is ready."""
        while not await self._says_yes(pod, ""):  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(self.spec.startup_period_s)
        if pod.quota is not None and self.limits is not None:
            pod.quota.set(self.limits.limit_m)
        while True:
            if await self._says_yes(pod, SERVICES[self.stage]):
                pod.failures = 0
                if pod.ready_since is None:
                    pod.ready_since = time.monotonic()
                    self._publish()
            else:
                pod.failures += 1
                if pod.ready_since is not None and pod.failures >= self.spec.readiness_failures:
                    pod.ready_since = None
                    self._publish()
            await asyncio.sleep(self.spec.readiness_period_s)

    async def _says_yes(self, pod: Pod, service: str) -> bool:
        async with open_channel(f"{pod.host}:{self._port}") as channel:
            return await is_ready(channel, service, timeout_s=self.spec.readiness_timeout_s)

    async def _take_down(self, pod: Pod) -> None:
        assert pod.process is not None, "it was started"
        await asyncio.sleep(self.spec.pre_stop_s)
        began = time.monotonic()
        pod.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(pod.process.wait(), self.spec.grace_s - self.spec.pre_stop_s)
        except TimeoutError:
            pod.process.kill()
        status = await pod.process.wait()
        self.leaving.remove(pod)
        if pod.quota is not None:
            pod.quota.remove()
        self.gone.append(Gone(pod.name, time.monotonic() - began, status))

    def _publish(self) -> None:
        self.dns.records[f"{self.stage}.test", "A"] = [pod.host for pod in self.pods if pod.ready_since is not None]
