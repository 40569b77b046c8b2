"""The learned bound keeps its promise about errors, grows surer with similarity, and never breaks down."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_cache.semantic.bound import MIN_OBSERVATIONS, exploration_probability
from prompt_cache.vectors.vector_store import Observation

observations = st.lists(st.builds(Observation, st.floats(-1, 1), st.booleans()), min_size=MIN_OBSERVATIONS, max_size=64)


@given(observations, st.floats(-1, 1), st.floats(-1, 1), st.sampled_from([0.001, 0.01, 0.1]))
@settings(max_examples=60)
def test_exploring_never_rises_with_similarity(seen: list[Observation], one: float, other: float, target: float) -> None:
    low, high = sorted((one, other))
    probabilities = exploration_probability(high, seen, target), exploration_probability(low, seen, target)
    assert 0.0 <= probabilities[0] <= probabilities[1] + 1e-12 <= 1.0 + 1e-12


@pytest.mark.parametrize("count", range(MIN_OBSERVATIONS))
def test_too_few_observations_always_explore(count: int) -> None:
    assert exploration_probability(1.0, [Observation(0.5, True)] * count, 0.5) == 1.0


def test_all_right_all_wrong_and_separable_observations_are_no_trouble() -> None:
    right, wrong = [Observation(0.9, True)] * 40, [Observation(0.9, False)] * 40
    parted = [Observation(0.8, False)] * 30 + [Observation(0.92, True)] * 30
    assert (
        exploration_probability(0.95, right, 0.02) < exploration_probability(0.9, right, 0.02) < exploration_probability(0.6, right, 0.02)
    )
    assert exploration_probability(0.9, wrong, 0.02) > 0.97
    assert exploration_probability(0.8, parted, 0.02) > 0.95 > exploration_probability(0.95, parted, 0.02)


def test_more_of_the_same_right_answers_make_it_surer() -> None:
    explored = [exploration_probability(0.9, [Observation(0.9, True)] * count, 0.02) for count in (6, 12, 24, 48)]
    assert explored == sorted(explored, reverse=True) and len(set(explored)) == 4


def test_a_wrong_answer_makes_it_less_sure() -> None:
    right = [Observation(0.9, True)] * 30
    assert exploration_probability(0.93, [*right, Observation(0.91, False)], 0.02) > exploration_probability(0.93, right, 0.02)


def test_a_looser_target_explores_less() -> None:
    seen = [Observation(0.9, True)] * 20
    assert exploration_probability(0.9, seen, 0.2) < exploration_probability(0.9, seen, 0.02)


@pytest.mark.parametrize(
    "middle, slope, lowest",
    [(0.8, 40.0, 0.7), (0.9, 60.0, 0.8), (0.6, 20.0, 0.75), (0.95, 80.0, 0.85), (0.99, 100.0, 0.85), (0.85, 10.0, 0.7), (2.0, 40.0, 0.8)],
    ids=["typical", "strict", "easy", "hard", "hardest", "blurred", "never_right"],
)
def test_the_error_of_simulated_users_stays_under_the_target(middle: float, slope: float, lowest: float) -> None:
    """Users ask at random similarities; who is served wrong is not noticed, who is answered by the model teaches the entry."""
    target, num_requests = 0.05, 0
    source, errors = random.Random(7), 0
    for _ in range(6):
        seen: list[Observation] = []
        for _ in range(100):
            cosine = source.uniform(lowest, 1.0)
            right = source.random() < 1 / (1 + math.exp(-slope * (cosine - middle)))
            num_requests += 1
            if source.random() < exploration_probability(cosine, seen, target):
                seen = [*seen, Observation(cosine, right)][-64:]
            else:
                errors += not right
    assert errors <= target * num_requests
