"""Of autoscalers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from tests.deploy.kustomize import Object
from tests.deploy.manifests import Manifests

# Stages whose pods hold streams for minutes.
_HOLDS_STREAMS = {"gateway", "compute", "sampler"}


class Scaler(NamedTuple):
    """What HPAs and ScaledObjects have in common."""

    kind: str
    target: Object
    least: int
    most: int
    behaviour: Object


def scalers(manifests: Manifests) -> Iterator[Scaler]:
    """All autoscalers."""
    for item in manifests.of("HorizontalPodAutoscaler"):
        spec = item["spec"]
        yield Scaler("HPA", spec["scaleTargetRef"], spec.get("minReplicas", 1), spec["maxReplicas"], spec.get("behavior", {}))
    for item in manifests.of("ScaledObject"):
        spec = item["spec"]
        behaviour = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
        yield Scaler("ScaledObject", spec["scaleTargetRef"], spec.get("minReplicaCount", 0), spec["maxReplicaCount"], behaviour)


def targets(manifests: Manifests) -> list[str]:
    """Each scales a Deployment that is there, and no other one does: two would undo each other's work."""
    problems = []
    there = {item["metadata"]["name"] for item in manifests.of("Deployment")}
    found = Counter(one.target["name"] for one in scalers(manifests))
    for one in scalers(manifests):
        if one.target["kind"] != "Deployment" or one.target["apiVersion"] != "apps/v1" or one.target["name"] not in there:
            problems.append(f"{one.kind} scales {one.target}")
    return problems + [f"{name} has {count} autoscalers" for name, count in found.items() if count > 1]


def behaviour(manifests: Manifests) -> list[str]:
    """Scaling up is at once, down one by one after a while; a dead Prometheus does not scale down; a manifest has no count of what is scaled."""
    problems = []
    deployments = {item["metadata"]["name"]: item["spec"] for item in manifests.of("Deployment")}
    for one in scalers(manifests):
        name = one.target["name"]
        if not 1 <= one.least <= one.most:
            problems.append(f"{one.kind} {name} scales from {one.least} to {one.most}")
        if "replicas" in deployments.get(name, {}):
            problems.append(f"applying {name} would undo what its autoscaler did")
        down = one.behaviour.get("scaleDown", {})
        wanted = 600 if name in _HOLDS_STREAMS else 300
        if down.get("stabilizationWindowSeconds", 0) < wanted:
            problems.append(f"{name} shrinks after {down.get('stabilizationWindowSeconds')} s of lull")
        policies = [(policy["type"], policy["value"]) for policy in down.get("policies", ())]
        if policies != [("Pods", 1)]:
            problems.append(f"{name} shrinks by {policies}")
        if one.behaviour.get("scaleUp", {}).get("stabilizationWindowSeconds") != 0:
            problems.append(f"{name} does not grow at once")
    for item in manifests.of("ScaledObject"):
        spec = item["spec"]
        fallback = spec.get("fallback", {})
        if (
            not spec["minReplicaCount"] <= fallback.get("replicas", 0) <= spec["maxReplicaCount"]
            or fallback.get("behavior") != "currentReplicasIfHigher"
        ):
            problems.append(f"{item['metadata']['name']} falls back to {fallback}")
        for trigger in spec["triggers"]:
            if trigger["type"] != "prometheus" or trigger.get("metricType") != "AverageValue":
                problems.append(f"{item['metadata']['name']}: a trigger {trigger['type']} of {trigger.get('metricType')} has no fallback")
    return problems
