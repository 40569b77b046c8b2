"""The scheduler in simulated time, next to what papers report: figures to a results file.

Compares iteration-level with static batching (Orca, OSDI '22), merge steps with prompts computed apart (PPL.LLM), and policies with each
other under heavy-tailed lengths (FastServe, arXiv 2305.05920), each with two cost models: one fitted to steps measured here, one computed
from the data sheet of a large device. Every simulated request is checked to have got exactly its tokens before anything is reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compute_svc.engine.start.loading import load_engine
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.policies import POLICIES, make_policy
from compute_svc.scheduler.policies.multi_level import MultiLevelFeedback
from compute_svc.scheduler.policies.policy import Policy
from compute_svc.settings import Settings
from compute_svc.simulator.cost_model import TINY_MODEL_ON_ONE_CPU_CORE, CostModel, fit, roofline
from compute_svc.simulator.measure import measure_steps
from compute_svc.simulator.servers import ScheduledServer, StaticBatchingServer, StopTheWorldServer
from compute_svc.simulator.simulation import Outcome, Server, simulate
from compute_svc.simulator.workload import Lengths, Workload, log_normal_lengths, poisson_workload, uniform_lengths
from gateway.cli.hardware import describe_hardware
from gateway.cli.measuring.workload import BUNDLED_LENGTHS, read_lengths

RESULTS = Path(__file__).parents[1] / "results" / "simulator.json"
MODEL = Path(__file__).parents[2] / "tiny_model"
# 13 billion weights of 2 bytes, 40 layers of width 5120; 1.56 TB/s and 312 TFLOP/s, as on an A100's data sheet.
LARGE_DEVICE = roofline(
    weight_bytes=26e9, kv_bytes_per_token=2 * 40 * 5120 * 2, bytes_per_s=1.56e12, flops_per_token=26e9, flops_per_s=312e12
)
COSTS = {"tiny model, one CPU core, fitted": TINY_MODEL_ON_ONE_CPU_CORE, "13B on an A100, computed": LARGE_DEVICE}
# As in Orca's evaluation: prompts of 32 to 512 tokens, answers of 1 to 128, evenly drawn.
ORCA_LENGTHS = uniform_lengths(20_000, prompt=(32, 512), answer=(1, 128), seed=1)
HEAVY_TAIL = log_normal_lengths(20_000, prompt_median=64, answer_median=48, sigma=1.3, max_prompt=1000, max_answer=1000, seed=2)
IMPATIENT = "multi-level, promoted after 30 s"
COMPARED_POLICIES: dict[str, Callable[[], Policy]] = {**POLICIES, IMPATIENT: partial(MultiLevelFeedback, max_wait_s=30.0)}
PARTS = ("calibration", "orca", "merge_step", "fast_serve", "speed")
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
# Of 16 tokens: what 80 GB leave beside the 13 billion weights.
KV_PAGES = 3800

MakeServer = Callable[[], Server]


def _config(max_running: int) -> SchedulerConfig:
    return SchedulerConfig(
        page_size_tokens=16,
        num_pages=KV_PAGES,
        max_model_len_tokens=2048,
        step_budget_tokens=512,
        max_running_requests=max_running,
        max_waiting_requests=1 << 22,
    )


def _scheduled(max_running: int, policy: str = "fcfs") -> MakeServer:
    return lambda: ScheduledServer(_config(max_running), make_policy(policy))


def _run(make_server: MakeServer, workload: Workload, cost: CostModel) -> Outcome:
    outcome = simulate(make_server(), workload, cost)
    outcome.require_exact()
    return outcome


def _capacity(make_server: MakeServer, lengths: Lengths, cost: CostModel, num: int) -> float:
    """Requests per second when all come at once, between the first and the last quarter of the answers: neither filling nor running dry."""
    ends = np.sort(_run(make_server, poisson_workload(lengths, num_requests=num, rate=1e9, seed=3), cost).end_s)
    return num / 2 / float(ends[3 * num // 4] - ends[num // 4])


def _highest_rate(make_server: MakeServer, lengths: Lengths, cost: CostModel, limit_s: float, start: float, num: int) -> float:
    """Requests per second at which the median latency for each answer token stays within a limit; 0 if none does."""

    def holds(rate: float) -> bool:
        workload = poisson_workload(lengths, num_requests=num, rate=rate, seed=4)
        return float(np.median(_run(make_server, workload, cost).normalized_latency_s)) <= limit_s

    low, high = start / 1000, start * 2
    if not holds(low):
        return 0.0
    while high / low > 1.03:
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def calibrate(num_requests: int) -> dict[str, Any]:
    """Measures steps of the tiny model and fits prices to them."""
    torch.set_num_threads(1)
    engine = load_engine(Settings(model=MODEL, threads=1, max_running_requests=64))
    # Other processes may have a share of the core: their time is not the step's.
    steps = measure_steps(engine, num_requests=num_requests, seed=0, clock=time.thread_time)
    engine.assert_consistent()
    cost = fit([step.work for step in steps], [step.seconds for step in steps])

    def errors(model: CostModel) -> dict[str, float]:
        ratios = [abs(model.seconds(step.work) / step.seconds - 1) for step in steps]
        total = sum(model.seconds(step.work) for step in steps) / sum(step.seconds for step in steps)
        return {
            "median_error_percent": round(100 * statistics.median(ratios), 1),
            "p90_error_percent": round(100 * float(np.quantile(ratios, 0.9)), 1),
            "predicted_over_measured_total": round(total, 3),
        }

    return {
        "num_steps": len(steps),
        "clock": "processor time of the engine's one thread",
        "fitted_now": {**asdict(cost), **errors(cost)},
        "stored_default": {**asdict(TINY_MODEL_ON_ONE_CPU_CORE), **errors(TINY_MODEL_ON_ONE_CPU_CORE)},
    }


def orca(num: int) -> dict[str, Any]:
    """Throughput at equal latency: iteration-level batching against static batching with the batch size that suits it best."""
    rows = {}
    for name, cost in COSTS.items():
        alone = poisson_workload(ORCA_LENGTHS, num_requests=200, rate=1e-3, seed=5)
        unloaded_s = float(np.median(_run(_scheduled(64), alone, cost).normalized_latency_s))
        capacity = _capacity(_scheduled(64), ORCA_LENGTHS, cost, num)
        for factor in (2, 4, 10):
            limit = factor * unloaded_s
            ours = _highest_rate(_scheduled(64), ORCA_LENGTHS, cost, limit, capacity, num)
            static = {
                size: _highest_rate(lambda size=size: StaticBatchingServer(size), ORCA_LENGTHS, cost, limit, capacity, num)  # type: ignore[misc]
                for size in BATCH_SIZES
            }
            best = max(static, key=lambda size: static[size])
            rows[f"{name}, median latency {factor} x unloaded"] = {
                "iteration_level_requests_per_s": round(ours, 3),
                "static_requests_per_s": round(static[best], 3),
                "static_batch_size": best,
                "ratio": round(ours / static[best], 2) if static[best] else None,
            }
    return {
        "paper": "Orca, OSDI '22: up to 36.9 x FasterTransformer's throughput at equal latency, GPT-3 175B on 16 A100",
        "why": "a static batch answers when its longest answer ends and newcomers wait for that; how much a larger batch is worth depends on "
        "what a step costs beside its rows: much where the weights' bytes dominate, little on one CPU core. The static batch here pads no "
        "prompt and needs no memory, so it is better than FasterTransformer was",
        "checked": "every request got exactly its tokens, in every run",
        "rows": rows,
    }


def _lengths_of_the_file() -> Lengths:
    prompts, answers = np.array(read_lengths(BUNDLED_LENGTHS), dtype=np.int64).T
    return Lengths(prompts, answers)


def merge_step(num: int) -> dict[str, Any]:
    """Merge steps against prompts computed whole and alone."""
    lengths = _lengths_of_the_file()
    rows = {}
    for name, cost in COSTS.items():
        for max_running in (64, 256):
            apart: MakeServer = lambda max_running=max_running: StopTheWorldServer(max_running, KV_PAGES * 16)  # type: ignore[misc]  # noqa: E731
            merged = _scheduled(max_running)
            offline = [_capacity(server, lengths, cost, num) for server in (merged, apart)]
            busy = poisson_workload(lengths, num_requests=num, rate=0.8 * offline[1], seed=6)
            outcomes = [_run(server, busy, cost) for server in (merged, apart)]
            unloaded = poisson_workload(lengths, num_requests=200, rate=1e-3, seed=5)
            limit = 2 * float(np.median(_run(merged, unloaded, cost).normalized_latency_s))
            online = [_highest_rate(server, lengths, cost, limit, offline[0], num) for server in (merged, apart)]
            rows[f"{name}, {max_running} requests"] = {
                "all_at_once_requests_per_s": {"merge_step": round(offline[0], 3), "stop_the_world": round(offline[1], 3)},
                "all_at_once_gain_percent": round(100 * (offline[0] / offline[1] - 1), 1),
                "requests_per_s_at_2_x_unloaded_latency": {"merge_step": round(online[0], 3), "stop_the_world": round(online[1], 3)},
                "at_equal_latency_gain_percent": round(100 * (online[0] / online[1] - 1), 1) if online[1] else None,
                "mean_latency_s_at_80_percent_load": {
                    "merge_step": round(float(outcomes[0].latency_s.mean()), 3),
                    "stop_the_world": round(float(outcomes[1].latency_s.mean()), 3),
                },
            }
    return {
        "paper": "PPL.LLM: + 100 % requests per second by the merge step",
        "why": "under a linear cost a merged step saves no more than the steps a prompt would have had to itself, one reading of the weights "
        "each; the claim needs steps whose cost does not add up, or a baseline that loses more than that",
        "checked": "every request got exactly its tokens, in every run",
        "rows": rows,
    }


def _policy_rows(num: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, cost in COSTS.items():
        for max_running in (8, 64):
            capacity = _capacity(_scheduled(max_running), HEAVY_TAIL, cost, num)
            for load in (0.8, 1.0, 1.2):
                workload = poisson_workload(HEAVY_TAIL, num_requests=num, rate=load * capacity, seed=7)
                means, slowest, preemptions = {}, {}, {}
                for policy, make in COMPARED_POLICIES.items():
                    server = ScheduledServer(_config(max_running), make())
                    outcome = simulate(server, workload, cost)
                    outcome.require_exact()
                    server.scheduler.assert_consistent()
                    means[policy] = round(float(outcome.latency_s.mean()), 3)
                    slowest[policy] = round(float(np.quantile(outcome.latency_s, 0.99)), 3)
                    preemptions[policy] = server.scheduler.num_preemptions
                yield (
                    f"{name}, {max_running} requests at {load:.0%} load",
                    {
                        "mean_completion_s": means,
                        "p99_completion_s": slowest,
                        "preemptions": preemptions,
                        "fcfs_over_multi_level": round(means["fcfs"] / means["multi-level"], 2),
                        "fcfs_over_impatient_multi_level": round(means["fcfs"] / means[IMPATIENT], 2),
                        "fcfs_over_shortest_first": round(means["fcfs"] / means["shortest-first"], 2),
                    },
                )


def fast_serve(num: int) -> dict[str, Any]:
    """Mean completion time of each policy under heavy-tailed lengths."""
    return {
        "paper": "FastServe, arXiv 2305.05920: mean completion time up to 5.1 x better than Orca's first come, first served",
        "why": "order matters only while requests wait for a place: not at all in a batch that has room, more the longer the queue and the "
        "heavier the tail. Shortest-first is told the true length of each answer; multi-level knows nothing and pays "
        "with preemptions. In lasting overload all wait longer than its promotion limit, and all that are promoted are first come, first "
        "served again: the limit bounds starvation and the gain alike",
        "checked": "every request got exactly its tokens, and every page one owner, in every run",
        "rows": dict(_policy_rows(num)),
    }


def speed(num: int) -> dict[str, Any]:
    """How fast the simulator is, and so what the scheduler costs: processor time, the workload's included."""
    cost = TINY_MODEL_ON_ONE_CPU_CORE
    lengths = _lengths_of_the_file()
    rate = 0.9 * _capacity(_scheduled(64), lengths, cost, 2000)
    began = time.process_time()
    outcome = _run(_scheduled(64), poisson_workload(lengths, num_requests=num, rate=rate, seed=8), cost)
    seconds = time.process_time() - began
    return {
        "requests": num,
        "answer_tokens": outcome.num_step_tokens,
        "steps": outcome.num_steps,
        "processor_s": round(seconds, 1),
        "requests_per_s": round(num / seconds),
        "answer_tokens_per_s": round(outcome.num_step_tokens / seconds),
        "microseconds_per_step": round(seconds / outcome.num_steps * 1e6, 1),
    }


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration-requests", type=int, default=200)
    parser.add_argument("--rate-requests", type=int, default=1000, help="of each run in search of a rate")
    parser.add_argument("--requests", type=int, default=3000, help="of each run that compares policies")
    parser.add_argument("--speed-requests", type=int, default=1_000_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured; the file keeps the others")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    kept = json.loads(arguments.output.read_text()) if arguments.output.exists() and len(arguments.parts) < len(PARTS) else {}
    document: dict[str, Any] = {
        **kept,
        "what": "the scheduler on simulated time: batching, merge steps and policies beside what papers report",
        "triserve": version("triserve"),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "settings": {name: str(value) for name, value in vars(arguments).items() if name not in ("output", "parts")},
        "cost_models": {name: asdict(cost) for name, cost in COSTS.items()},
    }
    measures: list[Callable[[], dict[str, Any]]] = [
        lambda: calibrate(arguments.calibration_requests),
        lambda: orca(arguments.rate_requests),
        lambda: merge_step(arguments.rate_requests),
        lambda: fast_serve(arguments.requests),
        lambda: speed(arguments.speed_requests),
    ]
    parts = dict(zip(PARTS, measures, strict=True))
    for name in arguments.parts:
        document[name] = {**parts[name](), "finished_at": datetime.now(UTC).isoformat(timespec="seconds")}
        print(name, json.dumps(document[name], indent=1), flush=True)
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
