"""What the tokenize stage tells Prometheus. It scales on the seconds of work that wait."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenizer_svc.lanes import Lanes

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Metrics:
    """Counted as requests are answered.

    Args:
        registry: Where they are told.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("triserve_tokenizer_requests", "Requests by how they ended", ("result",), registry=registry)
        self.tokens = Counter("triserve_tokenizer_tokens", "Token ids of answers", registry=registry)
        self.encode_seconds = Histogram("triserve_tokenizer_encode_seconds", "Time of an encoding", buckets=_SECONDS, registry=registry)


class QueueCollector(Collector):
    """What waits now.

    Args:
        lanes: Where.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes

    def collect(self) -> Iterable[Metric]:
        """All families, with their values now."""
        yield GaugeMetricFamily(
            "triserve_tokenizer_queued_seconds", "Work that waits, at the pace of what was done last", value=self._lanes.queued_s
        )
        yield GaugeMetricFamily("triserve_tokenizer_queued_requests", "Requests that wait for a thread", value=self._lanes.num_waiting)
