"""Measuring steps of a real engine: every token is counted, and the clock that is given is the one that is read."""

from __future__ import annotations

from itertools import count

import pytest

from compute_svc.engine.engine import Engine
from compute_svc.simulator.cost_model import StepWork
from compute_svc.simulator.measure import MeasuredStep, measure_steps, work_of
from compute_svc.wire.step_output import StepOutput
from tests.fakes.engine_reader import request_of, small_engine


class _Ticks:
    """A clock that advances a second each time it is read."""

    def __init__(self) -> None:
        self._ticks = count()

    def __call__(self) -> float:
        return float(next(self._ticks))


def test_each_step_is_measured_once_with_the_given_clock() -> None:
    engine = small_engine()
    steps = measure_steps(engine, num_requests=40, seed=1, clock=_Ticks())
    assert {step.seconds for step in steps} == {1.0}
    load = engine.load
    assert (load.running_requests, load.waiting_requests, load.used_pages) == (0, 0, 0)
    assert 0 < len(steps) < load.steps, "the steps of the first requests are dropped"


def test_the_measured_work_is_what_the_engine_computed() -> None:
    # With seven requests none is dropped.
    engine = small_engine()
    steps = measure_steps(engine, num_requests=7, seed=2)
    assert sum(step.work.prefill_tokens for step in steps) == engine.load.prefill_tokens
    first_tokens = 7 + engine.load.preemptions
    assert sum(step.work.decode_rows for step in steps) == engine.load.decode_tokens - first_tokens
    assert all(step.seconds > 0 for step in steps)
    assert max(step.work.decode_rows for step in steps) > 1, "several are under way at once"


def test_a_seed_gives_the_same_steps() -> None:
    def works(seed: int) -> list[StepWork]:
        return [step.work for step in measure_steps(small_engine(), num_requests=10, seed=seed)]

    assert works(3) == works(3) != works(4)


def _step(engine: Engine) -> tuple[StepWork, StepOutput | None]:
    plan = engine.plan(0.0)
    work = work_of(plan)
    return work, engine.run(plan)


def test_work_counts_the_tokens_in_front_of_each_row_and_chunk() -> None:
    engine = small_engine()
    engine.submit(request_of(1, [1] * 20, 3))
    assert [_step(engine)[0] for _ in range(3)] == [StepWork(0, 16, 0), StepWork(0, 4, 16), StepWork(1, 0, 20)]
    assert MeasuredStep(StepWork(1, 0, 20), 0.5).seconds == pytest.approx(0.5)
