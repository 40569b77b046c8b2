"""A soak: many short requests with random cancels through one engine; memory stays flat and nothing is left over.

Drives the engine by itself, as its process does, with a real model. Every answer that was not cancelled has its exact length, every page is free or
cached at the end, and the resident memory of the second half stays where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.start.loading import load_engine
from compute_svc.settings import Settings
from compute_svc.wire.request import GREEDY, Request
from compute_svc.wire.step_output import StepOutput
from gateway.cli.hardware import describe_hardware
from triserve.rpc.sampling import Sampling

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "tests" / "tiny_model"
RESULTS = Path(__file__).parents[1] / "results" / "soak.json"
_SAMPLED = Sampling(top_k=4, seed=1, presence_penalty=0.5)


class Soak:
    """Keeps an engine full until all requests are done.

    Args:
        engine: With an empty pool.
        num_requests: In all.
        in_flight: At once; more than fit into the batch.
        seed: Of everything random.
    """

    def __init__(self, engine: Engine, *, num_requests: int, in_flight: int, seed: int) -> None:
        self._engine = engine
        self._num_requests = num_requests
        self._in_flight = in_flight
        self._random = random.Random(seed)
        self._next = 0
        self._lengths: dict[int, int] = {}
        self._tokens: dict[int, int] = {}
        self.finished = 0
        self.cancelled = 0
        self.resident_mb: list[float] = []

    def run(self) -> None:
        """Returns when every request has ended."""
        process = psutil.Process()
        every = max(1, self._num_requests // 200)
        while self._next < self._num_requests or self._lengths:
            while self._next < self._num_requests and len(self._lengths) < self._in_flight:
                self._submit()
            self._cancel_some()
            output = self._engine.step(time.monotonic())
            if output is not None:
                self._take(output)
            if (self.finished + self.cancelled) // every > len(self.resident_mb):
                self.resident_mb.append(process.memory_info().rss / 1e6)

    def _submit(self) -> None:
        rng = self._random
        # A third begin alike, so that prefixes are shared, split and evicted.
        shared = [300 + index % 7 for index in range(48)] if rng.random() < 0.33 else []
        prompt = shared + [rng.randrange(300, 4000) for _ in range(rng.randint(1, 60))]
        length = rng.randint(1, 16) if rng.random() < 0.8 else rng.randint(17, 120)
        sampling = _SAMPLED if rng.random() < 0.25 else GREEDY
        request = Request(
            self._next, f"tenant {rng.randrange(3)}", np.array(prompt), np.empty(0, dtype=np.int64), length, 0.0, sampling=sampling
        )
        self._engine.submit(request)
        self._lengths[self._next] = length
        self._tokens[self._next] = 0
        self._next += 1

    def _cancel_some(self) -> None:
        if self._lengths and self._random.random() < 0.5:
            number = self._random.choice(list(self._lengths))
            self._engine.release(number)
            self._forget(number)
            self.cancelled += 1

    def _take(self, output: StepOutput) -> None:
        rows = output.rows
        if rows is not None:
            for number in rows.numbers.tolist():
                self._tokens[number] += 1
        for released in output.released:
            if released.number in self._lengths:
                assert released.error is None, released.error
                assert self._tokens[released.number] == self._lengths[released.number], "an answer has its exact length"
                self._forget(released.number)
                self.finished += 1

    def _forget(self, number: int) -> None:
        # Rows of the step under way may still name it.
        del self._lengths[number]


def _check(soak: Soak, engine: Engine, num_requests: int) -> dict[str, Any]:
    assert soak.finished + soak.cancelled == num_requests, "every request has ended"
    engine.assert_consistent()
    load = engine.load
    assert (load.running_requests, load.waiting_requests, load.used_pages) == (0, 0, 0), f"something is left over: {load}"
    half = len(soak.resident_mb) // 2
    growth_mb = float(np.mean(soak.resident_mb[-half // 2 :]) - np.mean(soak.resident_mb[half : half + half // 2]))
    assert load.preemptions, "some requests were preempted: the pool was small enough"
    assert growth_mb < 8, f"memory grew by {growth_mb:.1f} MB in the second half"
    return {
        "finished": soak.finished,
        "cancelled": soak.cancelled,
        "preemptions": load.preemptions,
        "steps": load.steps,
        "cached_tokens": load.cached_tokens,
        "pages_leaked": load.used_pages,
        "resident_mb_at_quarter_half_end": [round(soak.resident_mb[index], 1) for index in (half // 2, half, -1)],
        "growth_in_second_half_mb": round(growth_mb, 2),
    }


def main() -> None:
    """Runs the soak and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--in-flight", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # A pool so small that requests wait for pages and some are preempted.
    settings = Settings.model_validate(
        {
            "model": MODEL,
            "threads": arguments.threads,
            "kv_cache_bytes": 24 * 16 * 4096,
            "max_model_len_tokens": 256,
            "max_running_requests": 32,
        }
    )
    engine = load_engine(settings)
    soak = Soak(engine, num_requests=arguments.requests, in_flight=arguments.in_flight, seed=arguments.seed)
    started = time.monotonic()
    soak.run()
    document = {
        "what": "short requests with random cancels through one engine: memory flat, nothing left over",
        "requests": arguments.requests,
        "seconds": round(time.monotonic() - started, 1),
        "pages": engine.config.num_pages,
        **_check(soak, engine, arguments.requests),
        "torch": version("torch"),
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
