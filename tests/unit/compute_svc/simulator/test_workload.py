"""Workloads: what is drawn, and that prompts share only what they should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compute_svc.simulator.workload import Lengths, Workload, log_normal_lengths, poisson_workload, uniform_lengths

LENGTHS = Lengths(np.array([3, 9]), np.array([5, 7]))


def _workload(**changes: Any) -> Workload:
    return replace(poisson_workload(LENGTHS, num_requests=6, rate=2.0, seed=1, num_tenants=3), **changes)


def test_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    gaps = np.diff(poisson_workload(LENGTHS, num_requests=20_000, rate=4.0, seed=0).arrivals_s)
    assert gaps.mean() == pytest.approx(0.25, rel=0.03) and gaps.std() == pytest.approx(0.25, rel=0.05)


def test_lengths_are_drawn_in_pairs_and_a_seed_gives_the_same_workload() -> None:
    one, two, other = (poisson_workload(LENGTHS, num_requests=50, rate=1.0, seed=seed) for seed in (1, 1, 2))
    assert set(zip(one.prompt_tokens.tolist(), one.answer_tokens.tolist(), strict=True)) == {(3, 5), (9, 7)}
    assert (one.arrivals_s == two.arrivals_s).all() and (one.prompt_tokens == two.prompt_tokens).all()
    assert (one.arrivals_s != other.arrivals_s).any()


def test_log_normal_lengths_have_their_median_a_heavy_tail_and_a_cap() -> None:
    lengths = log_normal_lengths(20_000, prompt_median=50, answer_median=100, sigma=1.5, max_prompt=5000, max_answer=400, seed=0)
    assert np.median(lengths.prompt_tokens) == pytest.approx(50, rel=0.05) and np.median(lengths.answer_tokens) == pytest.approx(
        100, rel=0.05
    )
    assert lengths.prompt_tokens.mean() > 2 * 50
    assert lengths.prompt_tokens.min() >= 1 and lengths.answer_tokens.max() == 400


def test_uniform_lengths_reach_both_ends() -> None:
    lengths = uniform_lengths(1000, prompt=(2, 4), answer=(1, 1), seed=0)
    assert set(lengths.prompt_tokens.tolist()) == {2, 3, 4} and set(lengths.answer_tokens.tolist()) == {1}


def test_prompts_share_their_groups_beginning_and_nothing_else() -> None:
    workload = _workload(prompt_tokens=np.full(6, 8), groups=np.array([-1, 0, 0, 1, -1, 0]), shared_tokens=5)
    prompts = [workload.request(index).prompt.tolist() for index in range(6)]

    def shared(one: int, two: int) -> int:
        return next((n for n in range(8) if prompts[one][n] != prompts[two][n]), 8)

    assert {shared(one, two) for one in (1, 2, 5) for two in (1, 2, 5) if one != two} == {5}
    assert {shared(one, two) for one in (0, 3, 4) for two in range(6) if one != two} == {0}


def test_a_request_is_what_the_arrays_say() -> None:
    workload = _workload(priorities=np.arange(6))
    request = workload.request(4)
    assert (request.number, request.priority, request.tenant) == (4, 4, str(workload.tenants[4]))
    assert (request.prompt.size, request.max_tokens) == (workload.prompt_tokens[4], workload.answer_tokens[4])
    assert request.submitted_at == workload.arrivals_s[4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tenants": np.zeros(5, np.int64)}, "a number of each kind"),
        ({"answer_tokens": np.zeros(6, np.int64)}, "one token at least"),
        ({"arrivals_s": np.arange(6, 0, -1.0)}, "order of their arrival"),
        ({"groups": np.zeros(6, np.int64), "shared_tokens": 9}, "longer than what it shares"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _workload(**changes)
