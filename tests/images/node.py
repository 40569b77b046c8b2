"""What a cluster does around pods and podman does not: probes, endpoints of Services in DNS, and a pod's end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.manifests import Manifests, Pod
from tests.fakes.dns_server import DnsServer
from tests.images.control_groups import processes_limit
from tests.images.manifest import played
from tests.images.podman import Podman
from tests.images.probes import answers

Object = dict[str, Any]

# Of Services in DNS, as clusters have it.
DNS_ADDRESS = "10.96.0.10"
_SUBNET = "10.244.7.0/24"
_NETWORK = "pods"
# A kubelet's podPidsLimit, which it has for the whole node.
_POD_PIDS_LIMIT = 512
_POLL_S = 0.1


@dataclass
class RunningPod:
    """A pod that was started.

    Attributes:
        published: Whether Services may lead to it.
        start_s: How long it took to be ready.
        failed: Probes that were not answered well, once they had to be.
    """

    name: str
    pod: Pod
    address: str
    container: str
    published: bool
    start_s: float = 0.0
    ready: bool = False
    terminating: bool = False
    failed: list[str] = field(default_factory=list)

    @property
    def pre_stop_s(self) -> float:
        """Between the decision to end it and SIGTERM."""
        return float(self.pod.main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))


class Node:
    """Pods of one overlay on this machine.

    Args:
        podman: Has no containers yet.
        manifests: The overlay.
        folder: For volumes and files.
        dns: Answers at `DNS_ADDRESS`.
        images: What is run instead of an image of the manifests.
    """

    def __init__(self, podman: Podman, manifests: Manifests, folder: Path, dns: DnsServer, images: dict[str, str]) -> None:
        self.podman = podman
        self.manifests = manifests
        self.pods: list[RunningPod] = []
        self._folder = folder
        self._dns = dns
        self._images = images
        self._count = 0
        self._watches: dict[str, asyncio.Task[None]] = {}

    async def prepare(self) -> None:
        """Makes the network that pods are in, and publishes the Services, which have no endpoints yet."""
        await self.podman("network", "create", "--disable-dns", "--subnet", _SUBNET, _NETWORK)
        self._publish()

    def of(self, deployment: str) -> RunningPod:
        """The newest pod of a Deployment."""
        return next(one for one in reversed(self.pods) if one.pod.name == deployment)

    async def start(self, deployment: str, *, published: bool = True) -> RunningPod:
        """Starts a pod; returns when its init containers have ended well and its container runs.

        Args:
            deployment: What it is one of.
            published: Whether Services lead to it as soon as it is ready; else when `publish` is called.
        """
        self._count += 1
        pod = self.manifests.pod(deployment)
        name = f"{deployment}-{self._count}"
        objects = played(self.manifests, pod, name, volumes=self._folder / "empty" / name, nameserver=DNS_ADDRESS, images=self._images)
        file = self._folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump_all(objects))
        started = time.monotonic()
        await self.podman("kube", "play", "--network", _NETWORK, str(file))
        container = f"{name}-{pod.main['name']}"
        processes_limit(await self.pid(container)).write_text(str(_POD_PIDS_LIMIT))
        infra = await self.podman.inspect("container", (await self.podman.inspect("pod", name))["InfraContainerID"])
        running = RunningPod(name, pod, infra["NetworkSettings"]["Networks"][_NETWORK]["IPAddress"], container, published)
        self.pods.append(running)
        self._watches[name] = asyncio.create_task(self._watch(running, started))
        return running

    async def until_ready(self, *pods: RunningPod) -> None:
        """Returns when all of them are ready.

        Raises:
            AssertionError: one never was, as its probes count.
        """
        while not all(pod.ready for pod in pods):
            for pod in pods:
                assert not pod.failed, f"{pod.name} failed {pod.failed[0]}: {await self.log(pod)}"
            await asyncio.sleep(_POLL_S)

    def publish(self, pod: RunningPod) -> None:
        """Services lead to it, once it is ready."""
        pod.published = True
        self._publish()

    async def pid(self, container: str) -> int:
        """Of a container's first process."""
        return int((await self.podman.inspect("container", container))["State"]["Pid"])

    async def log(self, pod: RunningPod) -> str:
        """The last it has said."""
        return await self.podman("logs", "--tail", "20", pod.container)

    async def begin_end(self, pod: RunningPod) -> None:
        """As `kubectl delete pod` does: no longer an endpoint, then preStop, then SIGTERM. Returns when that is sent."""
        pod.terminating = True
        self._publish()
        await asyncio.sleep(pod.pre_stop_s)
        await self.podman("kill", "--signal", "TERM", pod.container)

    async def until_ended(self, pod: RunningPod) -> None:
        """Returns when it has ended by itself and well; its containers and volumes are removed.

        Raises:
            AssertionError: it ended otherwise than with status 0.
            TimeoutError: it did not end in its grace time.
        """
        grace_s = float(pod.pod.spec["terminationGracePeriodSeconds"]) - pod.pre_stop_s
        status = int(await self.podman("wait", pod.container, within_s=grace_s))
        assert status == 0, f"{pod.name} ended with status {status}: {await self.log(pod)}"
        await self._remove(pod)

    async def close(self) -> None:
        """Ends whatever runs, at once."""
        for pod in list(self.pods):
            await self._remove(pod)

    async def _remove(self, pod: RunningPod) -> None:
        self._watches.pop(pod.name).cancel()
        self.pods.remove(pod)
        await self.podman("pod", "rm", "--force", "--time", "0", pod.name)
        self._publish()

    async def _watch(self, pod: RunningPod, started: float) -> None:
        """Probes as long as the pod is: of liveness no more may go unanswered than the manifest says, its end included."""
        main = pod.pod.main
        startup = main["startupProbe"]
        if not await self._within(pod, startup):
            pod.failed.append("its startupProbe")
            return
        readiness, liveness = main["readinessProbe"], main["livenessProbe"]
        next_liveness, unanswered = 0.0, 0
        while True:
            ready = await self._answers(pod, readiness)
            if ready and not pod.start_s:
                pod.start_s = time.monotonic() - started
            if ready != pod.ready:
                pod.ready = ready
                self._publish()
            if time.monotonic() >= next_liveness:
                next_liveness = time.monotonic() + float(liveness.get("periodSeconds", 10))
                unanswered = 0 if await self._answers(pod, liveness) else unanswered + 1
                if unanswered == int(liveness.get("failureThreshold", 3)):
                    pod.failed.append("its livenessProbe")
            await asyncio.sleep(_POLL_S if not ready else float(readiness.get("periodSeconds", 10)))

    async def _within(self, pod: RunningPod, startup: Object) -> bool:
        """Whether a startup probe is answered well as early as it has to be."""
        for _ in range(int(startup.get("failureThreshold", 3))):
            if await self._answers(pod, startup):
                return True
            if await self._has_ended(pod):
                return False
            await asyncio.sleep(float(startup.get("periodSeconds", 10)))
        return False

    async def _answers(self, pod: RunningPod, probe: Object) -> bool:
        return await answers(self.podman, pod.pod.main, probe, address=pod.address, name=pod.container)

    async def _has_ended(self, pod: RunningPod) -> bool:
        return not (await self.podman.inspect("container", pod.container))["State"]["Running"]

    def _publish(self) -> None:
        """Every Service's name leads to the pods that it selects, that are ready and that are not about to end."""
        for service in self.manifests.of("Service"):
            metadata, selector = service["metadata"], service["spec"]["selector"].items()
            name = f"{metadata['name']}.{metadata['namespace']}.svc.cluster.local"
            chosen = [
                pod for pod in self.pods if pod.ready and pod.published and not pod.terminating and selector <= pod.pod.labels.items()
            ]
            self._dns.records[name, "A"] = [pod.address for pod in chosen]
