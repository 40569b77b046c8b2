"""The numbers of the committed manifests that decide how a stage scales: of its pods, and of its autoscaler."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.bench.elastic.autoscaler import Behavior, Policy, Rules
from tests.deploy.manifests import load, variables

# The overlays whose stages scale by CPU with metrics-server alone, and by their own signals with KEDA.
OVERLAYS: Mapping[str, str] = {"hpa": "cpu", "keda": "gpu"}
_QUERY = re.compile(r"sum\((?P<rate>rate\()?(?P<metric>\w+)\{(?P<matchers>[^}]*)\}(?:\[(?P<window_s>\d+)s\]\))?\)")
_MATCHER = re.compile(r'(\w+)="([^"]*)"')
# Labels that Prometheus adds to all that a pod tells.
_OF_PROMETHEUS = ("namespace", "job")
_CPU = re.compile(r"(?P<value>\d+)(?P<milli>m?)")


class PodSpec(NamedTuple):
    """What the benchmark takes of a Deployment.

    Attributes:
        request_m, limit_m: Millicores.
        startup_period_s: Between two looks whether it has started.
        readiness_period_s: Between two looks whether it takes requests.
        readiness_timeout_s: Of such a look.
        readiness_failures: So many in a row, and it is out of DNS.
        pre_stop_s: From its leaving DNS to SIGTERM.
        grace_s: From its leaving DNS to SIGKILL.
        drain: Variables that say how long it may drain.
    """

    request_m: int
    limit_m: int
    startup_period_s: float
    readiness_period_s: float
    readiness_timeout_s: float
    readiness_failures: int
    pre_stop_s: float
    grace_s: float
    drain: Mapping[str, str]


class Utilization(NamedTuple):
    """CPU that is used, in percent of what is asked for."""

    percent: int


class Average(NamedTuple):
    """A sum over all pods, and what each may have of it.

    Attributes:
        metric: Its name.
        rate_s: A counter's growth a second over so long; None = a gauge as it is.
        threshold: For a pod of the stage that is scaled.
        job: Whose pods tell of it.
        labels: That series must have, such as `stage="tokenizer"`.
    """

    metric: str
    rate_s: float | None
    threshold: float
    job: str
    labels: frozenset[str] = frozenset()


class Scaling(NamedTuple):
    """An autoscaler's manifest."""

    behavior: Behavior
    metrics: tuple[Utilization | Average, ...]


def pod_spec(stage: str, overlay: str) -> PodSpec:
    """Of a stage's pods in an overlay."""
    pod = load(overlay).pod(stage)
    startup, readiness, resources = (pod.main[name] for name in ("startupProbe", "readinessProbe", "resources"))
    return PodSpec(
        request_m=millicores(resources["requests"]["cpu"]),
        limit_m=millicores(resources["limits"]["cpu"]),
        startup_period_s=startup["periodSeconds"],
        readiness_period_s=readiness["periodSeconds"],
        readiness_timeout_s=readiness["timeoutSeconds"],
        readiness_failures=readiness["failureThreshold"],
        pre_stop_s=pod.main["lifecycle"]["preStop"]["sleep"]["seconds"],
        grace_s=pod.spec["terminationGracePeriodSeconds"],
        drain={name: value for name, value in variables(pod.main).items() if name.endswith("_DRAIN_TIMEOUT_S")},
    )


def scaling(stage: str, kind: str) -> Scaling:
    """Of a stage's autoscaler; `kind` is a key of `OVERLAYS`."""
    manifests = load(OVERLAYS[kind])
    if kind == "hpa":
        spec = manifests.named("HorizontalPodAutoscaler", stage)["spec"]
        targets = [metric["resource"]["target"]["averageUtilization"] for metric in spec["metrics"]]
        return Scaling(_behavior(spec["minReplicas"], spec["maxReplicas"], spec["behavior"]), tuple(map(Utilization, targets)))
    spec = manifests.named("ScaledObject", stage)["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    bounded = _behavior(spec["minReplicaCount"], spec["maxReplicaCount"], behavior)
    return Scaling(bounded, tuple(_average(trigger["metadata"]) for trigger in spec["triggers"]))


def hurried(behavior: Behavior, *, down: float) -> Behavior:
    """The same with the times of scaling down divided: nobody watches a benchmark for an hour."""
    policies = tuple(policy._replace(period_s=policy.period_s / down) for policy in behavior.down.policies)
    return behavior._replace(down=behavior.down._replace(window_s=behavior.down.window_s / down, policies=policies))


def millicores(text: str) -> int:
    """A quantity of CPU.

    Raises:
        ValueError: it is in another form than manifests here have.
    """
    found = _CPU.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no quantity of CPU in cores or millicores")
    return int(found["value"]) * (1 if found["milli"] else 1000)


def _behavior(least: int, most: int, spec: Mapping[str, Any]) -> Behavior:
    return Behavior(least, most, _rules(spec["scaleUp"]), _rules(spec["scaleDown"]))


def _rules(spec: Mapping[str, Any]) -> Rules:
    policies: Sequence[Mapping[str, Any]] = spec["policies"]
    return Rules(
        window_s=spec["stabilizationWindowSeconds"],
        policies=tuple(Policy(policy["type"], policy["value"], policy["periodSeconds"]) for policy in policies),
        select=spec.get("selectPolicy", "Max"),
    )


def _average(metadata: Mapping[str, str]) -> Average:
    found = _QUERY.fullmatch(metadata["query"])
    if found is None:
        raise ValueError(f"the query {metadata['query']!r} is no sum of a metric or of its rate")
    matchers = dict(_MATCHER.findall(found["matchers"]))
    return Average(
        metric=found["metric"],
        rate_s=float(found["window_s"]) if found["rate"] else None,
        threshold=float(metadata["threshold"]),
        job=matchers["job"],
        labels=frozenset(f'{name}="{value}"' for name, value in matchers.items() if name not in _OF_PROMETHEUS),
    )
