"""What the sampler tells Prometheus. It scales on the age of the oldest frame that is not answered, and on rows a second per core."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """Counted as frames are answered.

    Args:
        registry: Where they are told.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.frames = Counter("triserve_sampler_frames", "Frames answered", registry=registry)
        self.rows = Counter("triserve_sampler_rows", "Rows of them", registry=registry)
        self.frame_seconds = Histogram(
            "triserve_sampler_frame_seconds", "Time of the work on frames that were answered together", buckets=_SECONDS, registry=registry
        )


class StateCollector(Collector):
    """What there is now.

    Args:
        open_requests: Gives the requests under way.
        oldest_frame_s: Gives for how long the oldest frame has waited.
    """

    def __init__(self, *, open_requests: Callable[[], int], oldest_frame_s: Callable[[], float]) -> None:
        self._open_requests = open_requests
        self._oldest_frame_s = oldest_frame_s

    def collect(self) -> Iterable[Metric]:
        """All families, with their values now."""
        yield GaugeMetricFamily("triserve_sampler_open_requests", "Requests under way", value=self._open_requests())
        yield GaugeMetricFamily(
            "triserve_sampler_oldest_frame_seconds", "Age of the oldest frame that is not answered", value=self._oldest_frame_s()
        )
