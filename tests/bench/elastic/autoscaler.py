"""What a HorizontalPodAutoscaler decides from what it measures: the arithmetic of Kubernetes' own (autoscaling/v2). No clock, no I/O.

https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details says it in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

# A ratio this near to 1 changes nothing; --horizontal-pod-autoscaler-tolerance.
TOLERANCE = 0.1


class Policy(NamedTuple):
    """How much may change within a period."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_s: float


class Rules(NamedTuple):
    """Of one direction.

    Attributes:
        window_s: What was wanted in so many seconds counts: the least of it on the way up, the most on the way down.
        policies: Bounds of the change.
        select: Which of them counts: the one that allows most, the one that allows least, or no change at all.
    """

    window_s: float
    policies: tuple[Policy, ...]
    select: Literal["Max", "Min", "Disabled"] = "Max"


class Behavior(NamedTuple):
    """Bounds of what an autoscaler may do."""

    min_replicas: int
    max_replicas: int
    up: Rules
    down: Rules


class PodMetric(NamedTuple):
    """One pod that is not being deleted.

    Attributes:
        usage_m: Millicores used; None = not measured.
        is_ready: Whether it was ready for as long as that was measured.
    """

    usage_m: int | None
    is_ready: bool


def wanted_by_utilization(pods: Sequence[PodMetric], *, request_m: int, target_percent: int, current: int) -> int:
    """Replicas that would bring the pods' mean use of what they ask for to its target.

    A pod that is not ready or not measured never makes the change larger: it counts as idle where more are wanted, and as busy where fewer are.

    Args:
        pods: All there are.
        request_m: Millicores that each asks for.
        target_percent: Of the request.
        current: Replicas now.
    """
    measured = [pod.usage_m for pod in pods if pod.is_ready and pod.usage_m is not None]
    num_unready = sum(not pod.is_ready for pod in pods)
    num_missing = len(pods) - num_unready - len(measured)
    if not measured:
        return current
    ratio = _ratio(measured, request_m, target_percent)
    rises_with_unready = num_unready > 0 and ratio > 1
    if not rises_with_unready and not num_missing:
        return current if _is_within(ratio) else math.ceil(ratio * len(measured))
    if num_missing and ratio != 1:
        busy_m = request_m * max(100, target_percent) // 100
        measured += [busy_m if ratio < 1 else 0] * num_missing
    if rises_with_unready:
        measured += [0] * num_unready
    careful = _ratio(measured, request_m, target_percent)
    wanted = math.ceil(careful * len(measured))
    turns = (ratio < 1 < careful) or (careful < 1 < ratio) or (careful < 1 and wanted > current) or (careful > 1 and wanted < current)
    return current if _is_within(careful) or turns else wanted


def wanted_by_average(total: float, *, target: float, current: int) -> int:
    """Replicas of which each has at most `target` of a total that is measured for all together (an external metric's AverageValue)."""
    return current if current and _is_within(total / (target * current)) else math.ceil(total / target)


class Autoscaler:
    """Turns what is wanted into what is done: stabilization windows first, then policies, minimum and maximum.

    Args:
        behavior: Of the manifest.
    """

    def __init__(self, behavior: Behavior) -> None:
        self._behavior = behavior
        # When, and how many were wanted before anything was stabilized.
        self._wanted: list[tuple[float, int]] = []
        # When, and by how many replicas it changed.
        self._changes: list[tuple[float, int]] = []

    def decide(self, now: float, *, current: int, wanted: Iterable[int]) -> int:
        """How many replicas there shall be; whoever asks sees to it.

        Args:
            now: Seconds; never falling.
            current: Replicas now.
            wanted: By each metric; the largest counts.
        """
        least, most = self._behavior.min_replicas, self._behavior.max_replicas
        if current > most or current < least:
            decided = min(max(current, least), most)
        else:
            decided = self._bounded(now, current, self._stabilized(now, current, max(wanted)))
        if decided != current:
            self._changes.append((now, decided - current))
        return decided

    def _stabilized(self, now: float, current: int, wanted: int) -> int:
        if not self._wanted:
            # What a new controller finds is what was wanted so far.
            self._wanted.append((now, current))
        up, down = self._behavior.up.window_s, self._behavior.down.window_s
        least = min([wanted, *(count for at, count in self._wanted if at > now - up)])
        most = max([wanted, *(count for at, count in self._wanted if at > now - down)])
        self._wanted = [(at, count) for at, count in self._wanted if at > now - max(up, down)] + [(now, wanted)]
        return min(max(current, least), most)

    def _bounded(self, now: float, current: int, wanted: int) -> int:
        if wanted > current:
            limit = self._limit(now, current, self._behavior.up, sign=1)
            return min(wanted, max(limit, current), self._behavior.max_replicas)
        if wanted < current:
            limit = self._limit(now, current, self._behavior.down, sign=-1)
            return max(wanted, min(limit, current), self._behavior.min_replicas)
        return current

    def _limit(self, now: float, current: int, rules: Rules, *, sign: int) -> int:
        if rules.select == "Disabled":
            return current
        limits = []
        for policy in rules.policies:
            began_with = current - sum(change for at, change in self._changes if at > now - policy.period_s)
            if policy.kind == "Pods":
                limits.append(began_with + sign * policy.value)
            else:
                # Rounded so that a small percentage of few pods still changes something on the way up.
                limits.append((math.ceil if sign > 0 else math.floor)(began_with * (100 + sign * policy.value) / 100))
        return max(limits) if (rules.select == "Max") == (sign > 0) else min(limits)


def _ratio(usages_m: Sequence[int], request_m: int, target_percent: int) -> float:
    """Kubernetes counts in whole percent."""
    return (sum(usages_m) * 100 // (request_m * len(usages_m))) / target_percent


def _is_within(ratio: float) -> bool:
    return 1 - TOLERANCE <= ratio <= 1 + TOLERANCE
