"""What a compute replica tells Prometheus. It scales on the seconds of prefill that wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from compute_svc.wire.step_output import EngineInfo, Load

_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
# Of a new value in the mean.
_WEIGHT = 0.2


class PrefillPace:
    """Prompt tokens a second, as measured while some waited. Pure."""

    def __init__(self) -> None:
        self._tokens_per_s = 0.0
        self._last: tuple[float, int] | None = None

    def observe(self, now: float, prefill_tokens: int, *, is_busy: bool) -> None:
        """So many were computed since the start, and whether some wait now."""
        if not is_busy:
            # A while in which nothing waited says how much was asked for, and not how fast it is done.
            self._last = None
        elif self._last is None:
            self._last = (now, prefill_tokens)
        elif now > self._last[0] and prefill_tokens > self._last[1]:
            # Over all the time since there was progress: a step may take longer than a look.
            pace = (prefill_tokens - self._last[1]) / (now - self._last[0])
            self._tokens_per_s = pace if not self._tokens_per_s else self._tokens_per_s + _WEIGHT * (pace - self._tokens_per_s)
            self._last = (now, prefill_tokens)

    def seconds(self, tokens: float, oldest_s: float) -> float:
        """How long so many will take; as long as the oldest has waited where nothing was measured yet."""
        return tokens / self._tokens_per_s if self._tokens_per_s else oldest_s if tokens else 0.0


class StepMetrics:
    """Observed at each step of the engine.

    Args:
        registry: Where they are told.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._batch_tokens = Histogram("triserve_compute_batch_tokens", "Tokens of a step", buckets=_TOKENS, registry=registry)
        self._step_seconds = Histogram(
            "triserve_compute_step_seconds",
            "From the end of a step to that of the next, while there was work",
            buckets=_SECONDS,
            registry=registry,
        )
        self._last: tuple[float, Load] | None = None

    def observe(self, load: Load, ended_at: float, num_started: int) -> None:
        """A step has ended, and so many requests have their first token: its row is a token of their prompt, and counted as one already."""
        if self._last is not None and load.steps == self._last[1].steps + 1:
            before = self._last[1]
            tokens = load.prefill_tokens - before.prefill_tokens + load.decode_tokens - before.decode_tokens - num_started
            self._batch_tokens.observe(max(0, tokens))
            if before.running_requests:
                self._step_seconds.observe(max(0.0, ended_at - self._last[0]))
        self._last = (ended_at, load)


def tell_kv_sizes(registry: CollectorRegistry, info: EngineInfo) -> None:
    """Tells what keys and values take from now on; called once, when the engine has loaded."""
    for name, text, value in (
        ("pages", "KV pages", info.num_pages),
        ("page_bytes", "Bytes of a KV page over all layers", info.kv_bytes_per_page),
        ("token_bytes", "Bytes of a token's keys and values over all layers", info.kv_bytes_per_page // info.page_size_tokens),
    ):
        gauge = Gauge(f"triserve_compute_kv_{name}", text, ("kv_format",), registry=registry)
        gauge.labels(info.kv_format).set(value)


class LoadCollector(Collector):
    """How full the engine is and what it has done, under our names and under vLLM's, which dashboards know.

    Args:
        load: Gives it.
        queued_prefill_s: Gives the seconds of prefill that wait.
        model_name: For vLLM's label.
    """

    def __init__(self, load: Callable[[], Load], queued_prefill_s: Callable[[], float], model_name: str) -> None:
        self._load = load
        self._queued_prefill_s = queued_prefill_s
        self._model_name = model_name

    def collect(self) -> Iterable[Metric]:
        """All families, with their values now."""
        load = self._load()
        pages = load.used_pages + load.cached_pages + load.free_pages + load.pinned_pages
        used = load.used_pages / pages if pages else 0.0
        yield GaugeMetricFamily(
            "triserve_compute_queued_prefill_seconds", "Prefill that waits, at the pace it was done last", value=self._queued_prefill_s()
        )
        for name, alias, text, value in (
            ("running_requests", "num_requests_running", "Requests in the batch", load.running_requests),
            ("waiting_requests", "num_requests_waiting", "Requests that wait for the batch", load.waiting_requests),
            ("kv_used_ratio", "kv_cache_usage_perc", "Share of the KV pages that requests own", used),
        ):
            yield GaugeMetricFamily(f"triserve_compute_{name}", text, value=value)
            yield self._aliased(GaugeMetricFamily(f"vllm:{alias}", text, labels=("model_name",)), value)
        prompt_tokens = load.prefill_tokens + load.cached_tokens
        for name, alias, text, value in (
            ("preemptions", "num_preemptions", "Requests that gave up their KV pages", load.preemptions),
            ("prefix_query_tokens", "prefix_cache_queries", "Prompt tokens looked for in the prefix cache", prompt_tokens),
            ("prefix_hit_tokens", "prefix_cache_hits", "Prompt tokens found there", load.cached_tokens),
            ("prompt_tokens", "prompt_tokens", "Prompt tokens, computed and found", prompt_tokens),
            ("generated_tokens", "generation_tokens", "Answer tokens", load.decode_tokens),
        ):
            yield CounterMetricFamily(f"triserve_compute_{name}", text, value=value)
            yield self._aliased(CounterMetricFamily(f"vllm:{alias}", text, labels=("model_name",)), value)

    def _aliased(self, family: Metric, value: float) -> Metric:
        family.add_metric((self._model_name,), value)  # type: ignore[attr-defined]
        return family
