"""Names, units and buckets of everything the gateway measures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.clients.fleet import Fleet
from gateway.plain_histogram import PlainHistogram
from prompt_cache import CacheStats
from triserve.rpc.metrics_server import new_registry

# Packages of an extra, which a gateway without a semantic cache does without.
if TYPE_CHECKING:
    from prompt_cache.semantic.semantic_cache import SemanticCache

_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_FAST_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1)
_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

# A label each: the busiest.
_MAX_SHOWN_SCOPES = 50
_SCOPE_CHARS = 24

_VLLM_LABELS = {"finish_reason": "finished_reason"}
_COMPUTE_GAUGES = {
    "running_requests": "Requests admitted to the batch",
    "waiting_requests": "Requests that wait for admission",
    "used_pages": "KV pages owned by requests",
    "cached_pages": "KV pages held by the prefix cache alone",
    "free_pages": "KV pages free",
}
_COMPUTE_COUNTERS = {
    "steps": "Steps",
    "preemptions": "Preemptions",
    "prefill_tokens": "Prompt tokens computed",
    "decode_tokens": "Answer tokens computed",
    "cached_tokens": "Prompt tokens found in the prefix cache",
}
_CACHE_GAUGES = {
    "breaker_open": "Whether Redis is left alone",
    "queued": "Writes that wait",
    "l0_entries": "Answers kept in memory",
    "l0_bytes": "Their bytes",
}


class Metrics:
    """What is counted as it happens. Each gateway has a registry of its own.

    Args:
        model_name: for vLLM's label.
    """

    def __init__(self, model_name: str = "") -> None:
        self.registry = new_registry("gateway", version("triserve"))
        self.refused = Counter(
            "triserve_gateway_refused", "Requests answered with an error, by its reason", ("reason",), registry=self.registry
        )
        self.loop_lag = self._histogram("gateway_loop_lag", "How late the event loop is for what was due", _SHORT_S)
        self.requests = Counter("triserve_requests", "Requests by how they ended", ("route", "outcome"), registry=self.registry)
        self.answers = Counter("triserve_answers", "Finished answers by finish reason", ("finish_reason",), registry=self.registry)
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of finished requests")
        self.completion_tokens = self._counter("completion_tokens", "Answer tokens delivered")
        self.cached_tokens = self._counter("cached_prompt_tokens", "Prompt tokens whose KV was reused")
        self.search_requests = Counter(
            "triserve_search_requests", "Requests given to replicas for searches, by the kind", ("kind",), registry=self.registry
        )
        self.cache_lookups = Counter("triserve_cache_lookups", "Requests by what the prompt cache did", ("result",), registry=self.registry)
        self.not_kept = Counter(
            "triserve_semantic_not_kept", "Answers not kept for similar questions, by why", ("reason",), registry=self.registry
        )
        self.saved_tokens = Counter(
            "triserve_cache_saved_tokens", "Tokens of answers that no replica had to make", ("tier",), registry=self.registry
        )
        self.saved_seconds = self._counter("cache_saved_seconds", "Time it took to make answers that were given again")
        self.cache_lookup = Histogram(
            "triserve_cache_lookup_seconds", "What asking the prompt cache took", ("result",), buckets=_FAST_S, registry=self.registry
        )
        self.retries = Counter("triserve_retries", "Requests given to another process after one failed", ("stage",), registry=self.registry)
        for stage in ("tokenizer", "compute"):
            # Told from the start, as 0.
            self.retries.labels(stage)
        self.stale_deltas = self._counter("stale_deltas", "Deltas discarded because their attempt was over")
        self.time_to_first_token = self._histogram("time_to_first_token", "From arrival to the first token", _LONG_S)
        self.inter_token_latency = self._histogram("inter_token_latency", "Between deltas as they are delivered", _SHORT_S)
        self.duration = self._histogram("request_duration", "From arrival to the end", _LONG_S)
        self.tokenize = self._histogram("tokenize", "In the tokenizer's queue and hands", _SHORT_S)
        self.queue = self._histogram("queue", "From submission to admission by compute", _LONG_S)
        self.prefill = self._histogram("prefill", "From admission to the end of the prompt", _LONG_S)
        self.registry.register(
            AliasCollector(
                {
                    "vllm:time_to_first_token_seconds": self.time_to_first_token,
                    "vllm:inter_token_latency_seconds": self.inter_token_latency,
                    "vllm:e2e_request_latency_seconds": self.duration,
                    "vllm:request_success": self.answers,
                },
                model_name,
            )
        )

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"triserve_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> PlainHistogram:
        histogram = PlainHistogram(f"triserve_{name}_seconds", text, buckets)
        self.registry.register(histogram)
        return histogram


class AliasCollector(Collector):
    """The same values under the names that dashboards know.

    Args:
        metrics: By their other names.
        model_name: A label that those have.
    """

    def __init__(self, metrics: Mapping[str, Counter | PlainHistogram], model_name: str) -> None:
        self._metrics = metrics
        self._model_name = model_name

    def collect(self) -> Iterable[Metric]:
        """All families, with their values now."""
        for name, metric in self._metrics.items():
            for family in metric.collect():
                alias = Metric(name, family.documentation, family.type)
                for sample in family.samples:
                    labels = {_VLLM_LABELS.get(label, label): value for label, value in sample.labels.items()}
                    labels["model_name"] = self._model_name
                    alias.samples.append(sample._replace(name=name + sample.name.removeprefix(family.name), labels=labels))
                yield alias


class StateCollector(Collector):
    """What is looked up when somebody asks.

    Args:
        fleet: the peers.
        active: gives the number of answers under way.
        body_bytes: gives the bytes of all bodies under way.
        cache_stats: gives the prompt cache's counters; None = there is no cache.
        semantic: the semantic cache; None = there is none.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        active: Callable[[], int],
        body_bytes: Callable[[], int],
        cache_stats: Callable[[], CacheStats] | None,
        semantic: SemanticCache | None = None,
    ) -> None:
        self._fleet = fleet
        self._active = active
        self._body_bytes = body_bytes
        self._cache_stats = cache_stats
        self._semantic = semantic

    def collect(self) -> Iterable[Metric]:
        """All families, with their values now."""
        yield GaugeMetricFamily("triserve_active_requests", "Answers under way", value=self._active())
        yield GaugeMetricFamily("triserve_gateway_open_streams", "Answers under way", value=self._active())
        yield GaugeMetricFamily("triserve_body_bytes", "Bytes of the bodies of requests under way", value=self._body_bytes())
        yield GaugeMetricFamily("triserve_asyncio_tasks", "Tasks of the event loop", value=len(asyncio.all_tasks()))
        ready = GaugeMetricFamily("triserve_peer_ready", "Whether the peer takes requests", labels=("stage", "peer"))
        in_flight = GaugeMetricFamily("triserve_peer_in_flight", "Requests of this gateway that the peer has", labels=("stage", "peer"))
        for peer in self._fleet.peers:
            ready.add_metric((peer.stage, peer.target), float(peer.ready))
            in_flight.add_metric((peer.stage, peer.target), peer.in_flight)
        members = GaugeMetricFamily("triserve_group_ready", "Processes that serve one model together", labels=("group", "stage"))
        for group in self._fleet.groups:
            members.add_metric((group.key.name, "tokenizer"), len(group.members.tokenizers))
            members.add_metric((group.key.name, "compute"), len(group.members.computes))
        yield from (ready, in_flight, members)
        known = GaugeMetricFamily("triserve_prefix_pages", "KV pages that a replica is known to hold", labels=("peer",))
        dropped = CounterMetricFamily("triserve_prefix_pages_dropped", "KV pages that there was no room to know of", labels=("peer",))
        for compute in self._fleet.computes:
            known.add_metric((compute.target,), len(compute.prefixes))
            dropped.add_metric((compute.target,), compute.prefixes.dropped)
        yield from (known, dropped)
        yield CounterMetricFamily("triserve_dns_failures", "Lookups of peers that DNS did not answer", value=self._fleet.lookup_failures)
        yield from self._compute_loads()
        if self._cache_stats is not None:
            yield from _cache_families(self._cache_stats())
        if self._semantic is not None:
            yield from _semantic_families(self._semantic)

    def _compute_loads(self) -> Iterable[Metric]:
        for name, text in _COMPUTE_GAUGES.items():
            gauge = GaugeMetricFamily(f"triserve_peer_{name}", text, labels=("peer",))
            for peer in self._fleet.computes:
                gauge.add_metric((peer.target,), getattr(peer.load, name))
            yield gauge
        for name, text in _COMPUTE_COUNTERS.items():
            counter = CounterMetricFamily(f"triserve_peer_{name}", text, labels=("peer",))
            for peer in self._fleet.computes:
                counter.add_metric((peer.target,), getattr(peer.load, name))
            yield counter


def _cache_families(stats: CacheStats) -> Iterable[Metric]:
    for name, text in _CACHE_GAUGES.items():
        yield GaugeMetricFamily(f"triserve_prompt_cache_{name}", text, value=float(getattr(stats, name)))
    for name in ("hits_l0", "hits_l1", "misses", "errors", "busy", "corrupt", "dropped", "written", "too_large"):
        yield CounterMetricFamily(f"triserve_prompt_cache_{name}", f"Prompt cache: {name}", value=getattr(stats, name))


def _semantic_families(semantic: SemanticCache) -> Iterable[Metric]:
    for name, text, counts in (
        ("lookups", "Looks for similar questions by how they ended", semantic.outcomes),
        ("refusals", "Nearest entries that were refused, by the step that did", semantic.refusals),
        ("comparisons", "Kept answers compared with the model's", semantic.comparer.comparisons),
    ):
        counter = CounterMetricFamily(f"triserve_semantic_{name}", text, labels=("result",))
        for result, value in counts.items():
            counter.add_metric((result,), value)
        yield counter
    judged = CounterMetricFamily(
        "triserve_semantic_judged", "Judgements of answers that differ, and of entries that a guard refused", labels=("subject", "result")
    )
    for labels, value in semantic.comparer.judged.items():
        judged.add_metric(labels, value)
    yield judged
    for name, number in semantic.embedding_counts().items():
        yield CounterMetricFamily(f"triserve_embedding_{name}", f"Embedder: {name}", value=number)
    reports = semantic.reports()
    yield GaugeMetricFamily(
        "triserve_semantic_open", "Whether the semantic cache has its embedder and its store", value=float(semantic.is_open)
    )
    yield GaugeMetricFamily(
        "triserve_semantic_scopes_off", "Scopes switched off for wrong answers", value=sum(one.is_off for one in reports)
    )
    checked, wrong = sum(one.checked for one in reports), sum(one.wrong for one in reports)
    yield CounterMetricFamily(
        "triserve_semantic_checked", "Answers given to similar questions that were compared with the model's", value=checked
    )
    yield CounterMetricFamily("triserve_semantic_wrong", "Of these, those that were not as good", value=wrong)
    bound = GaugeMetricFamily("triserve_semantic_wrong_bound", "Upper confidence bound of the share of wrong answers", labels=("scope",))
    for one in reports[:_MAX_SHOWN_SCOPES]:
        bound.add_metric((one.scope[:_SCOPE_CHARS],), one.bound)
    yield bound
