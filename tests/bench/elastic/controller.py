"""Scales a stage as its manifest says, every five seconds, by what its pods really say."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from tests.bench.elastic.autoscaler import Autoscaler, wanted_by_average, wanted_by_utilization
from tests.bench.elastic.deployment import Deployment
from tests.bench.elastic.manifest import Average, Scaling, Utilization
from tests.bench.elastic.scraper import CPU, Scraper

PERIOD_S = 5.0


class Controller:
    """The autoscaler of one stage.

    Args:
        deployment: What it scales.
        gateway: Address of the gateway's metrics.
        scaling: The manifest's numbers.
    """

    def __init__(self, deployment: Deployment, gateway: str, scaling: Scaling) -> None:
        assert deployment.limits is not None, "what is scaled by its CPU has a limit"
        self._deployment = deployment
        self._metrics = scaling.metrics
        self._request_m = deployment.limits.request_m
        # A pod here asks for a small part of what the manifest asks for.
        self._share = deployment.limits.request_m / deployment.spec.request_m
        self._autoscaler = Autoscaler(scaling.behavior)
        self.scraper = Scraper(deployment, gateway, [metric for metric in scaling.metrics if isinstance(metric, Average)])
        self.decisions: list[dict[str, Any]] = []

    async def run(self, began_at: float) -> None:
        """Scrapes and decides until it is cancelled; its notes count seconds from `began_at`, monotonic."""
        due = time.monotonic()
        async with aiohttp.ClientSession() as session:
            while True:
                await self.scraper.scrape(session)
                self._decide(time.monotonic(), began_at)
                due += PERIOD_S
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _decide(self, now: float, began_at: float) -> None:
        current = len(self._deployment.pods)
        wanted = [self._wanted(metric, current) for metric in self._metrics]
        decided = self._autoscaler.decide(now, current=current, wanted=wanted)
        self.decisions.append(
            {
                "at_s": round(now - began_at, 2),
                "pods": current,
                "ready": self._deployment.num_ready,
                "leaving": len(self._deployment.leaving),
                "wanted": wanted,
                "decided": decided,
                "cpu_m": round(self.scraper.cpu_m(), 1),
                "usage_m": [pod.usage_m if pod.is_ready else None for pod in self.scraper.pods()],
                "signals": {metric.metric: round(self.scraper.total(metric), 4) for metric in self._metrics if isinstance(metric, Average)},
            }
        )
        self._deployment.scale(decided)

    def _wanted(self, metric: Utilization | Average, current: int) -> int:
        if isinstance(metric, Utilization):
            return wanted_by_utilization(self.scraper.pods(), request_m=self._request_m, target_percent=metric.percent, current=current)
        threshold = metric.threshold * (self._share if metric.metric == CPU else 1.0)
        return wanted_by_average(self.scraper.total(metric), target=threshold, current=current)
