"""Times calls on a device: replays of a CUDA graph, or events where something cannot be captured; wall clock on a CPU."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Call = Callable[[], object]

# A graph has so many calls at least, so that what a launch costs does not count, and at most.
_MIN_CALLS, _MAX_CALLS = 8, 64
_MAX_SETS = 48
_MIN_REPLAYS, _MAX_REPLAYS = 5, 40


class Timed(NamedTuple):
    """What a call took.

    Attributes:
        seconds: Of one call, the median.
        spread: Slowest over fastest of the middle half of what was measured.
        how: "graph", "events" or "clock".
    """

    seconds: float
    spread: float
    how: str


def num_sets(bytes_of_one: float, cold_bytes: int) -> int:
    """How many sets of inputs of a size take turns, so that a set is read again after so many bytes of others."""
    return max(1, min(_MAX_SETS, math.ceil(cold_bytes / max(1, bytes_of_one))))


def measure(calls: Sequence[Call], device: torch.device, budget_s: float = 0.06) -> Timed:
    """Seconds of a call; calls differ only in where their inputs lie, and take turns.

    Args:
        calls: At least one; each has been run before.
        device: Where they compute.
        budget_s: About how long to measure.
    """
    if device.type != "cuda":
        return _by_clock(calls, budget_s)
    repeats = -(-_MIN_CALLS // len(calls))
    batch = (list(calls) * repeats)[:_MAX_CALLS]
    graph = captured(batch)
    run: Call = (lambda: [call() for call in batch]) if graph is None else graph.replay
    run()
    first = _elapsed(run)
    replays = max(_MIN_REPLAYS, min(_MAX_REPLAYS, int(budget_s / max(first, 1e-6))))
    times = [_elapsed(run) / len(batch) for _ in range(replays)]
    return _timed(times, "events" if graph is None else "graph")


def captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph | None:
    """A graph of the calls, one behind the other; None = one of them cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


def _elapsed(run: Call) -> float:
    """Seconds of the device, without those until the first launch gets there."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


def _by_clock(calls: Sequence[Call], budget_s: float) -> Timed:
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < 2 or time.perf_counter() < end:
        began = time.perf_counter()
        calls[len(times) % len(calls)]()
        times.append(time.perf_counter() - began)
    return _timed(times, "clock")


def _timed(times: Sequence[float], how: str) -> Timed:
    ordered = sorted(times)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    return Timed(statistics.median(ordered), middle[-1] / middle[0], how)
