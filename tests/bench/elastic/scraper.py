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


class _Scrape(NamedTuple):
    at: float
    values: dict[str, float]


class Scraper:
    """Asks all pods of a stage, those that leave too.

    Args:
        deployment: Whose.
        names: Metrics that are kept; of one with labels the sum.
    """

    def __init__(self, deployment: Deployment, names: Sequence[str]) -> None:
        self._deployment = deployment
        self._series = re.compile(rf"^({'|'.join(names)})(?:{{[^}}]*}})? (\S+)$", re.MULTILINE)
        self._kept: dict[str, list[_Scrape]] = {}
        self.failures = 0

    async def scrape(self, session: aiohttp.ClientSession) -> None:
        """Asks each once. One that does not answer in time is without values for that while."""
        pods = [pod for pod in (*self._deployment.pods, *self._deployment.leaving) if pod.process is not None]
        await asyncio.gather(*(self._ask(session, pod) for pod in pods))
        now, alive = time.monotonic(), {pod.name for pod in pods}
        self._kept = {name: [one for one in kept if one.at > now - _KEPT_S] for name, kept in self._kept.items() if name in alive}

    def pods(self) -> list[PodMetric]:
        """The use of CPU of each pod that is to stay, as the HorizontalPodAutoscaler sees it."""
        return [self._pod(pod) for pod in self._deployment.pods]

    def cpu_m(self) -> float:
        """Millicores that all pods use, those that leave too."""
        return 1000 * self.total(Average(CPU, WINDOW_S, 1.0))

    def total(self, wanted: Average) -> float:
        """A sum over all pods: of a gauge's last values, or of a counter's growth a second."""
        total = 0.0
        for kept in self._kept.values():
            if wanted.rate_s is None:
                total += kept[-1].values.get(wanted.metric, 0.0) if kept else 0.0
            else:
                total += _growth(_within(kept, wanted.rate_s), wanted.metric) / wanted.rate_s
        return total

    def _pod(self, pod: Pod) -> PodMetric:
        window = _within(self._kept.get(pod.name, []), WINDOW_S)
        is_ready = pod.ready_since is not None and (not window or window[0].at >= pod.ready_since)
        if len(window) < 2:
            return PodMetric(None, is_ready)
        return PodMetric(round(1000 * _growth(window, CPU) / (window[-1].at - window[0].at)), is_ready)

    async def _ask(self, session: aiohttp.ClientSession, pod: Pod) -> None:
        url = f"http://{pod.host}:{self._deployment.metrics_port}/metrics"
        try:
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError):
            # Before it listens that is no failure.
            self.failures += pod.ready_since is not None
            return
        values: dict[str, float] = {}
        for name, value in self._series.findall(text):
            values[name] = values.get(name, 0.0) + float(value)
        self._kept.setdefault(pod.name, []).append(_Scrape(time.monotonic(), values))


def _within(kept: Sequence[_Scrape], window_s: float) -> list[_Scrape]:
    """Those of the last seconds; none where the last one is older than half of them."""
    now = time.monotonic()
    if not kept or kept[-1].at < now - window_s / 2:
        return []
    return [one for one in kept if one.at >= kept[-1].at - window_s - _SLACK_S]


def _growth(window: Sequence[_Scrape], metric: str) -> float:
    return window[-1].values[metric] - window[0].values[metric] if len(window) > 1 else 0.0
