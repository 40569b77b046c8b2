"""Measures steps of a real engine, to fit a cost model to; the one module here that needs torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from compute_svc.engine.engine import Engine
from compute_svc.scheduler.base import Plan
from compute_svc.simulator.cost_model import StepWork
from compute_svc.wire.request import Request


class MeasuredStep(NamedTuple):
    """A step and what it took."""

    work: StepWork
    seconds: float


def work_of(plan: Plan) -> StepWork:
    """What a plan computes; to be asked before it is completed."""
    context = sum(state.num_computed for state in plan.decodes) + sum(chunk.start for chunk in plan.prefills)
    return StepWork(len(plan.decodes), sum(chunk.length for chunk in plan.prefills), context)


def measure_steps(engine: Engine, *, num_requests: int, seed: int, clock: Callable[[], float] = time.perf_counter) -> list[MeasuredStep]:
    """Computes greedy requests of random lengths, some at a time, and times each step: planning, the model and drawing.

    How many are under way changes from none to as many as the engine runs, so that the steps differ in everything the model prices.

    Args:
        engine: Empty; it is warm after the first requests, whose steps are dropped.
        clock: Seconds. `time.thread_time` where torch has one thread on a processor that is shared: it leaves out what others use.
    """
    random = np.random.default_rng(seed)
    longest = engine.config.max_request_tokens
    measured: list[MeasuredStep] = []
    submitted, live = 0, 0
    dropped = num_requests // 8
    while submitted < num_requests or live:
        wanted = int(random.integers(1, engine.config.max_running_requests + 1)) if random.random() < 0.1 else 0
        while submitted < num_requests and live < max(wanted, 1):
            prompt = int(np.clip(random.lognormal(4.5, 1.2), 1, longest // 2))
            answer = int(np.clip(random.lognormal(3.5, 1.0), 1, longest // 2))
            ids = random.integers(5, engine.logits_width, prompt)
            engine.submit(Request(submitted, "", ids, np.empty(0, np.int64), answer, 0.0))
            submitted, live = submitted + 1, live + 1
        began = clock()
        plan = engine.plan(began)
        work = work_of(plan)
        output = engine.run(plan)
        seconds = clock() - began
        assert output is not None, "requests are under way"
        live -= len(output.released)
        if submitted > dropped and not plan.is_empty:
            measured.append(MeasuredStep(work, seconds))
    return measured
