"""Do tokenizers and samplers grow and shrink alone? Load rises fourfold and falls again, and autoscalers scale them by the numbers of the committed manifests.

Real processes, each with a CPU limit of its own (a cgroup), find each other by DNS. A controller of each stage reads the pods' /metrics every five seconds and does
with them what Kubernetes does (tests/bench/elastic/autoscaler.py). Compute is a replica whose model takes a fixed time a step, as on a device; neither it nor the
gateway is scaled. The load rises first with as many pods as there are at least, for comparison. Every answer is held against the one that the same chat got before
the load. Needs root, cgroup v1 and eight minutes of a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import torch
import yaml

from tests.bench.elastic.autoscaler import TOLERANCE
from tests.bench.elastic.cluster import SCALED, Cluster, Sizes, running_cluster
from tests.bench.elastic.controller import PERIOD_S, Controller
from tests.bench.elastic.cpu_quota import reason_against_quotas
from tests.bench.elastic.load import Load, Outcome, Phase, make_questions
from tests.bench.elastic.manifest import OVERLAYS, Scaling, hurried, scaling
from tests.bench.elastic.scraper import WINDOW_S as METRICS_WINDOW_S
from tests.bench.elastic.summary import WINDOW_S, beyond, by_second, summary
from tests.deploy.manifests import K8S
from tests.e2e.pods import Stage
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "elasticity.json"
_ALERT = "TriserveFirstTokenSlow"


class Run:
    """One measurement.

    Args:
        cluster: Ready.
        scalings: Of stages that scale.
        load: Which knows the right answers.
        phases: Of the load.
    """

    def __init__(self, cluster: Cluster, scalings: Mapping[Stage, Scaling], load: Load, phases: Sequence[Phase]) -> None:
        self._cluster = cluster
        self._load = load
        self._phases = phases
        self._controllers = {stage: Controller(cluster.scaled[stage], cluster.gateway_metrics, one) for stage, one in scalings.items()}
        self._busy = {stage: psutil.Process(pid) for stage, pid in self._pids().items()}
        self._notes: list[dict[str, Any]] = []

    async def measure(self) -> dict[str, Any]:
        """Load, controllers and notes, until the last answer has come and the last pod that was told to go has gone."""
        began = time.monotonic()
        async with _beside(*(controller.run(began) for controller in self._controllers.values()), self._note(began)):
            outcomes = await self._load.run(self._phases)
            while any(deployment.leaving for deployment in self._cluster.scaled.values()):  # noqa: ASYNC110 - processes end by themselves
                await asyncio.sleep(0.5)
        return self._document(outcomes)

    def _pids(self) -> dict[str, int]:
        (replica,) = self._cluster.compute.pods
        assert replica.process is not None, "it serves"
        return {"gateway": self._cluster.gateway.pid, "compute": replica.process.pid, "clients": psutil.Process().pid}

    async def _note(self, began: float) -> None:
        """What runs, once a second."""
        psutil.cpu_percent()
        while True:
            await asyncio.sleep(1.0 - (time.monotonic() - began) % 1.0)
            self._notes.append(
                {
                    "at_s": round(time.monotonic() - began, 2),
                    "open_chats": self._load.open,
                    "machine_cpu_percent": psutil.cpu_percent(),
                    "processes_cpu_percent": {name: process.cpu_percent() for name, process in self._busy.items()},
                    "pods": {
                        stage: {"ready": one.num_ready, "all": len(one.pods), "leaving": len(one.leaving)}
                        for stage, one in self._cluster.scaled.items()
                    },
                }
            )

    def _document(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        deployments = self._cluster.scaled
        return {
            **summary(outcomes, self._phases),
            "pods_gone": {stage: [gone._asdict() for gone in one.gone] for stage, one in deployments.items()},
            "pods_that_failed": [fault for one in (*deployments.values(), self._cluster.compute) for fault in one.faults],
            "scrapes_that_failed": {stage: one.scraper.failures for stage, one in self._controllers.items()},
            "by_second": by_second(outcomes, round(sum(phase.seconds for phase in self._phases))),
            "notes": self._notes,
            "decisions": {stage: one.decisions for stage, one in self._controllers.items()},
        }


@asynccontextmanager
async def _beside(*works: Any) -> AsyncIterator[None]:
    """Runs what has no end while the context lasts; a fault of theirs is one of the context."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _run(arguments: argparse.Namespace, log: IO[bytes]) -> dict[str, Any]:
    scalings = {stage: scaling(stage, arguments.autoscaler) for stage in SCALED}
    scalings = {stage: one._replace(behavior=hurried(one.behavior, down=arguments.hurry)) for stage, one in scalings.items()}
    first = {stage: one.behavior.min_replicas for stage, one in scalings.items()}
    sizes = Sizes(OVERLAYS[arguments.autoscaler], arguments.core_m, arguments.step_ms, first)
    rates = (arguments.rate, arguments.rate * arguments.times, arguments.rate)
    phases = [Phase(seconds, rate) for seconds, rate in zip(arguments.seconds, rates, strict=True)]
    async with running_cluster(sizes, log) as cluster:
        load = Load(cluster.url, make_questions(arguments.questions, arguments.seed, max_tokens=arguments.max_tokens), arguments.seed)
        print(f"{arguments.questions} chats, a few at once, for their answers", flush=True)
        await load.learn()
        print(f"the rise of the load for {sum(arguments.seconds[:2]):g} s, with as many pods as there are", flush=True)
        fixed = await Run(cluster, {}, load, phases[:2]).measure()
        print(f"all of the load for {sum(arguments.seconds):g} s, with autoscalers", flush=True)
        scaled = await Run(cluster, scalings, load, phases).measure()
    bounds = {"ttft_bound_s": arguments.bound_s, "alert_bound_s": alert_bound_s()}
    rise_s, fall_s = arguments.seconds[0], sum(arguments.seconds[:2])
    for measured in (fixed, scaled):
        measured["p99_beyond"] = [beyond(measured["by_second"], bound_s=bound, begin_s=rise_s, end_s=fall_s) for bound in bounds.values()]
    return {**bounds, **scaled, "without_autoscalers": fixed}


def alert_bound_s() -> float:
    """Of the time to the first token, as the committed alert has it."""
    spec = yaml.safe_load((K8S / "components" / "monitoring" / "alerts.yaml").read_text())["spec"]
    rules = [rule for group in spec["groups"] for rule in group["rules"] if rule["alert"] == _ALERT]
    return float(rules[0]["expr"].rpartition(">")[2])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--autoscaler", choices=list(OVERLAYS), default="hpa", help="whose manifests scale: by CPU alone, or by the stages' own signals too"
    )
    parser.add_argument("--rate", type=float, default=17.0, help="chats a second, at first and at last")
    parser.add_argument("--times", type=float, default=4.0, help="how many times as many come in between")
    parser.add_argument("--seconds", type=float, nargs=3, default=[40.0, 80.0, 120.0], help="of each of the three")
    parser.add_argument("--core-m", type=int, default=25, help="millicores of this machine that stand for a core of the manifests")
    parser.add_argument(
        "--hurry",
        type=float,
        default=30.0,
        help="windows and periods of scaling down are divided by it; those of scaling up are as committed",
    )
    parser.add_argument("--step-ms", type=float, default=200.0, help="of the model")
    parser.add_argument("--bound-s", type=float, default=1.0, help="that the p99 of the time to the first token is to keep")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--max-tokens", type=int, default=88)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="where the processes' logs go; else they are dropped")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Measures and writes the results file."""
    arguments = _arguments()
    reason = reason_against_quotas()
    if reason is not None:
        raise SystemExit(f"pods cannot have CPU limits here: {reason}")
    # Whoever ends it, its pods and their cgroups end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with arguments.log.open("wb") if arguments.log else tempfile.TemporaryFile() as log:
        measured = asyncio.run(_run(arguments, log))
    document = {
        "what": "tokenizers and samplers scaled by the committed manifests' numbers while load rises and falls; pods are processes with CPU limits",
        **describe_environment(torch.device("cpu")),
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("output", "log")},
        "controller": {"period_s": PERIOD_S, "metrics_window_s": METRICS_WINDOW_S, "tolerance": TOLERANCE},
        "ttft_window_s": WINDOW_S,
        **measured,
    }
    arguments.output.write_text(_written(document) + "\n")
    for name, run in (("without autoscalers", document["without_autoscalers"]), ("with autoscalers", document)):
        print(name, json.dumps({key: run[key] for key in ("chats", "lost_or_wrong", "faults", "phases", "p99_beyond")}, indent=1))


def _written(value: Any, depth: int = 0) -> str:
    """As JSON with a line for each row of a table."""
    indent = " " * (depth + 1)
    if isinstance(value, dict) and depth < 3:
        inner = [f"{indent}{json.dumps(key)}: {_written(one, depth + 1)}" for key, one in value.items()]
        return "{\n" + ",\n".join(inner) + f"\n{indent[1:]}}}" if inner else "{}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"{indent}{json.dumps(one)}" for one in value) + f"\n{indent[1:]}]"
    return json.dumps(value)


if __name__ == "__main__":
    main()
