"""What a stage's pods say at /metrics, kept for as long as an autoscaler looks back: Prometheus and metrics-server in one."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import aiohttp

from tests.bench.elastic.autoscaler import PodMetric
from tests.bench.elastic.deployment import Deployment, Pod
from tests.bench.elastic.manifest import Average

CPU = "process_cpu_seconds_total"
# As the committed PodMonitor has it.
_TIMEOUT_S = 4.0
# Of metrics-server, by its published manifest.
WINDOW_S = 15.0
_KEPT_S = 90.0
# A window may begin a little earlier: scrapes do not come to the millisecond.
_SLACK_S = 1.0
_GATEWAY = "gateway"


class _Answer(NamedTuple):
    text: str
    at: float


class _Scrape(NamedTuple):
    at: float
    values: dict[Average, float]


class Scraper:
    """Asks all pods of a stage, those that leave too, and the gateway.

    Args:
        deployment: Whose.
        gateway: Address of the gateway's metrics.
        wanted: What is kept, besides the use of CPU.
    """

    def __init__(self, deployment: Deployment, gateway: str, wanted: Sequence[Average]) -> None:
        self._deployment = deployment
        self._gateway = gateway
        self._cpu = Average(CPU, WINDOW_S, 1.0, deployment.stage)
        self._wanted = [self._cpu, *wanted]
        self._series = re.compile(rf"^({'|'.join({one.metric for one in self._wanted})})(?:{{([^}}]*)}})? (\S+)$", re.MULTILINE)
        # By the name of the pod.
        self._kept: dict[str, list[_Scrape]] = {}
        self.failures = 0

    async def scrape(self, session: aiohttp.ClientSession) -> None:
        """Asks each once. One that does not answer in time is without values for that while."""
        pods = [pod for pod in (*self._deployment.pods, *self._deployment.leaving) if pod.process is not None]
        addresses = {pod.name: f"{pod.host}:{self._deployment.metrics_port}" for pod in pods} | {_GATEWAY: self._gateway}
        answers = await asyncio.gather(*(_ask(session, address) for address in addresses.values()))
        now, kept = time.monotonic(), self._kept
        self._kept = {name: [one for one in kept.get(name, []) if one.at > now - _KEPT_S] for name in addresses}
        for name, answer in zip(addresses, answers, strict=True):
            if answer is not None:
                job = _GATEWAY if name == _GATEWAY else self._deployment.stage
                self._kept[name].append(_Scrape(answer.at, self._values(job, answer.text)))
        # Before it listens that is no failure.
        self.failures += sum(pod.ready_since is not None and answer is None for pod, answer in zip(pods, answers, strict=False))

    def pods(self) -> list[PodMetric]:
        """The use of CPU of each pod that is to stay, as the HorizontalPodAutoscaler sees it."""
        return [self._pod(pod) for pod in self._deployment.pods]

    def cpu_m(self) -> float:
        """Millicores that all pods use, those that leave too."""
        return 1000 * self.total(self._cpu)

    def total(self, wanted: Average) -> float:
        """A sum over all pods: of a gauge's last values, or of a counter's growth a second."""
        every = [kept for name, kept in self._kept.items() if (name == _GATEWAY) == (wanted.job == _GATEWAY)]
        if wanted.rate_s is None:
            return sum(kept[-1].values.get(wanted, 0.0) for kept in every if kept)
        return sum(_growth(_within(kept, wanted.rate_s), wanted) for kept in every) / wanted.rate_s

    def _pod(self, pod: Pod) -> PodMetric:
        window = _within(self._kept.get(pod.name, []), WINDOW_S)
        is_ready = pod.ready_since is not None and (not window or window[0].at >= pod.ready_since)
        if len(window) < 2:
            return PodMetric(None, is_ready)
        return PodMetric(round(1000 * _growth(window, self._cpu) / (window[-1].at - window[0].at)), is_ready)

    def _values(self, job: str, text: str) -> dict[Average, float]:
        found = [(name, frozenset(labels.split(",")), float(value)) for name, labels, value in self._series.findall(text)]
        return {
            wanted: sum(value for name, labels, value in found if name == wanted.metric and wanted.labels <= labels)
            for wanted in self._wanted
            if wanted.job == job
        }


async def _ask(session: aiohttp.ClientSession, address: str) -> _Answer | None:
    try:
        async with session.get(f"http://{address}/metrics", timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as response:
            return _Answer(await response.text(), time.monotonic())
    except (aiohttp.ClientError, TimeoutError):
        return None


def _within(kept: Sequence[_Scrape], window_s: float) -> list[_Scrape]:
    """Those of the last seconds; none where the last one is older than half of them."""
    now = time.monotonic()
    if not kept or kept[-1].at < now - window_s / 2:
        return []
    return [one for one in kept if one.at >= kept[-1].at - window_s - _SLACK_S]


def _growth(window: Sequence[_Scrape], wanted: Average) -> float:
    return window[-1].values[wanted] - window[0].values[wanted] if len(window) > 1 else 0.0
