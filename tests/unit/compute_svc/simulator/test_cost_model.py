"""The prices of a step, and how they are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_svc.simulator.cost_model import TINY_MODEL_ON_ONE_CPU_CORE, CostModel, StepWork, fit, roofline

WORKS = [
    StepWork(rows, tokens, context) for rows in (0, 1, 8, 64) for tokens in (0, 1, 100, 512) for context in (0, 50, 9000) if rows or tokens
]


def test_a_step_costs_the_sum_of_its_prices() -> None:
    cost = CostModel(step_s=1.0, decode_row_s=0.1, prefill_token_s=0.01, context_token_s=0.001)
    assert cost.seconds(StepWork(3, 5, 7)) == pytest.approx(1.357)


@given(prices=st.tuples(st.floats(1e-5, 1e-1), *[st.floats(1e-7, 1e-3)] * 3))
@settings(max_examples=50, deadline=None)
def test_a_fit_finds_the_prices_that_made_the_times(prices: tuple[float, float, float, float]) -> None:
    made = CostModel(*prices)
    found = fit(WORKS, [made.seconds(work) for work in WORKS])
    for work in WORKS:
        assert found.seconds(work) == pytest.approx(made.seconds(work), rel=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_fit_to_anything_has_no_negative_price_and_is_no_worse_than_a_constant(seed: int) -> None:
    random = np.random.default_rng(seed)
    seconds = random.uniform(0.5, 1.5, len(WORKS)).tolist()
    found = fit(WORKS, seconds)
    errors = sum((found.seconds(work) / value - 1) ** 2 for work, value in zip(WORKS, seconds, strict=True))
    inverse = 1 / np.array(seconds)
    constant = inverse.sum() / (inverse**2).sum()
    assert errors <= float(((constant * inverse - 1) ** 2).sum()) + 1e-9


def test_noise_moves_the_prices_little() -> None:
    made = CostModel(3e-3, 2e-4, 1e-4, 1e-6)
    random = np.random.default_rng(0)
    found = fit(WORKS * 10, [made.seconds(work) * random.uniform(0.9, 1.1) for work in WORKS * 10])
    for work in WORKS:
        assert found.seconds(work) == pytest.approx(made.seconds(work), rel=0.05)


def test_steps_of_one_kind_do_not_determine_prices() -> None:
    with pytest.raises(ValueError, match="9 steps do not determine 4 prices"):
        fit([StepWork(1, 0, 5)] * 9, [1.0] * 9)
    with pytest.raises(ValueError, match="do not determine"):
        fit(WORKS[:3], [1.0] * 3)
    with pytest.raises(ValueError, match="of one length"):
        fit(WORKS, [1.0])
    with pytest.raises(ValueError, match="above 0"):
        fit(WORKS, [0.0] * len(WORKS))


def test_a_negative_price_and_a_step_without_time_are_refused() -> None:
    with pytest.raises(ValueError, match="negative price"):
        CostModel(1.0, -1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="takes no time"):
        CostModel(0.0, 0.0, 1.0, 0.0)


def test_a_device_that_is_bound_by_memory_computes_many_rows_for_little_more() -> None:
    cost = roofline(weight_bytes=14e9, kv_bytes_per_token=5e5, bytes_per_s=2e12, flops_per_token=14e9, flops_per_s=3e14)
    one, many = (cost.seconds(StepWork(rows, 0, 0)) for rows in (1, 32))
    assert one == pytest.approx(7e-3 + 14 / 3e5)
    assert many < 1.25 * one
    assert TINY_MODEL_ON_ONE_CPU_CORE.seconds(StepWork(1, 0, 0)) > 0
