"""How long the engine's threads should spin for each other: a step's time by waiting policy and number of threads, quiet and with busy cores.

A process for each variant, since libgomp reads its variables once, all with the same model of random weights and all kept for the whole run. They
answer the same prompt first, and the run ends if one answers otherwise. Then they take turns, round after round, on the quiet machine and
beside one process per core that never rests. Writes medians and spread to a results file.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.bench.engine.engine_runner import EngineRunner
from tests.bench.gpu.device_checks import whole_logits
from tests.bench.gpu.random_model import SHAPES, RandomWeights, build_random
from tests.environment import describe_environment
from triserve.rpc.machine import usable_cores

RESULTS = Path(__file__).parents[1] / "results" / "openmp_waiting.json"
ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
_CONTEXT_TOKENS = 64
_SPINS = (0, 300, 1000, 3000, 5000, 10_000, 30_000, 100_000)
_BATCHES = (1, 16)


class Variant(NamedTuple):
    """A way to wait."""

    name: str
    threads: int
    environment: dict[str, str]


def variants(cores: int) -> list[Variant]:
    """libgomp's default, passive, numbers of spins between the two, and one thread, which waits for nobody."""
    waiting = [Variant("default", cores, {}), Variant("passive", cores, {"OMP_WAIT_POLICY": "passive"})]
    waiting += [Variant(f"spin {count}", cores, {"GOMP_SPINCOUNT": str(count)}) for count in _SPINS]
    return [*waiting, Variant("1 thread", 1, {})]


class _Worker:
    """A variant's process."""

    def __init__(self, variant: Variant, shape: str) -> None:
        self.variant = variant
        unset = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
        command = (
            sys.executable,
            "-m",
            "tests.bench.engine.openmp_waiting",
            "--worker",
            "--shape",
            shape,
            "--threads",
            str(variant.threads),
        )
        self._process = subprocess.Popen(
            command, cwd=ROOT, env={**unset, **variant.environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **question: Any) -> Any:
        """The answer to one line."""
        assert self._process.stdin is not None and self._process.stdout is not None, "both are pipes"
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.variant.name!r} has ended with status {self._process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()


def main(arguments: Sequence[str] | None = None) -> Path:
    """Checks, measures and writes; returns the results file."""
    chosen = _parse(arguments)
    if chosen.worker:
        _work(chosen.shape, chosen.threads)
        return RESULTS
    with contextlib.ExitStack() as stack:
        workers = []
        for variant in variants(chosen.threads):
            if chosen.variants and variant.name not in chosen.variants:
                continue
            workers.append(_Worker(variant, chosen.shape))
            stack.callback(workers[-1].stop)
        answers = {worker.variant.name: worker.ask(batch=1, steps=0)["answer"] for worker in workers}
        if len(set(answers.values())) != 1:
            raise SystemExit(f"the variants answer differently: {answers}")
        conditions = {"quiet": 0, "busy": chosen.busy}
        measured = {name: _measure(workers, chosen.rounds, chosen.steps, num_busy) for name, num_busy in conditions.items()}
    document = {
        "what": "milliseconds of a decode step by how OpenMP threads wait, in turns, on the quiet machine and beside processes that never rest",
        **describe_environment(CPU),
        "model": chosen.shape,
        "threads": chosen.threads,
        "busy_processes": chosen.busy,
        "context_tokens": _CONTEXT_TOKENS,
        "rounds": chosen.rounds,
        "steps_of_a_round": chosen.steps,
        "load_average_at_the_end": os.getloadavg()[0],
        "step_ms": measured,
    }
    output: Path = chosen.output
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    _show(measured)
    return output


def _measure(workers: Sequence[_Worker], rounds: int, steps: int, num_busy: int) -> dict[str, Any]:
    times: dict[str, dict[str, list[float]]] = {f"batch {batch}": {worker.variant.name: [] for worker in workers} for batch in _BATCHES}
    with _busy(num_busy):
        for _ in range(rounds):
            for batch in _BATCHES:
                for worker in workers:
                    seconds = worker.ask(batch=batch, steps=steps)["seconds"]
                    times[f"batch {batch}"][worker.variant.name].append(1000 * seconds / steps)
    return {batch: {name: _spread(values) for name, values in by_name.items()} for batch, by_name in times.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen((sys.executable, "-c", "while True: pass")) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _show(measured: dict[str, Any]) -> None:
    for condition, batches in measured.items():
        for batch, by_name in batches.items():
            print(f"{condition}, {batch}: ms of a step, median (min - max)")
            for name, spread in by_name.items():
                print(f"  {name:12} {spread['median']:8.1f}  ({spread['min']:.1f} - {spread['max']:.1f})")


def _work(shape: str, threads: int) -> None:
    """Answers questions of standard input, one a line, until that is closed."""
    torch.set_num_threads(threads)
    weights = RandomWeights(shape, CPU)
    model = build_random(weights, torch.float32, CPU)
    most = max(_BATCHES)
    runner = EngineRunner.around(
        model,
        max_requests=most,
        max_tokens=_CONTEXT_TOKENS + 256,
        kv_tokens=most * (_CONTEXT_TOKENS + 256),
        step_budget_tokens=512,
    )
    for line in sys.stdin:
        question = json.loads(line)
        prompts = torch.randint(
            0, weights.config.vocab_size, (question["batch"], _CONTEXT_TOKENS), generator=torch.Generator().manual_seed(1)
        )
        if question["steps"]:
            reply: dict[str, Any] = {"seconds": runner.decode(prompts, 2, question["steps"])}
        else:
            likeliest = whole_logits(model, prompts[0]).argmax(-1)
            reply = {"answer": hashlib.sha256(likeliest.numpy().tobytes()).hexdigest()}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="75m", help="the model (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of a variant that has several (default: the cores there are)")
    parser.add_argument("--busy", type=int, default=usable_cores(), help="processes that never rest (default: one per core)")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these, such as 'spin 1000' (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each variant (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="of a turn (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
