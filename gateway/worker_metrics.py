"""What several gateway processes tell Prometheus, as one: each under its number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_WORKER = "worker"


class Watched(Protocol):
    """A worker process, as it is watched."""

    @property
    def number(self) -> int:
        """Its label."""

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""

    def ask(self, path: str) -> tuple[int, bytes]:
        """What it answers on its port for those who watch; raises OSError where it does not."""


class WorkersCollector(Collector):
    """What all processes tell, each under its number; those that do not answer are left out.

    Args:
        workers: whom to ask.
    """

    def __init__(self, workers: Sequence[Watched]) -> None:
        self._workers = workers
        self._threads = ThreadPoolExecutor(len(self._workers), thread_name_prefix="workers")

    def describe(self) -> Iterable[Metric]:
        """Nothing: nobody is to be asked before there is anybody."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All families of all, with their values now."""
        ready = GaugeMetricFamily("triserve_gateway_worker_ready", "Whether the worker process takes requests", labels=(_WORKER,))
        families: dict[str, Metric] = {ready.name: ready}
        for worker, told in zip(self._workers, self._threads.map(_told, self._workers), strict=True):
            ready.add_metric((str(worker.number),), float(worker.is_ready))
            for family in text_string_to_metric_families(told):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged.samples += [one._replace(labels={**one.labels, _WORKER: str(worker.number)}) for one in family.samples]
        return families.values()


def _told(worker: Watched) -> str:
    try:
        status, body = worker.ask("/metrics")
    except OSError:
        return ""
    return body.decode() if status == 200 else ""
