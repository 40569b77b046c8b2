"""The chain serves what every step lets pass, and says what refused the rest."""

from __future__ import annotations

import math

import pytest

from prompt_cache.semantic.candidate import Candidate
from prompt_cache.semantic.evaluator import DEFAULT_THRESHOLD, DEFAULT_THRESHOLD_WEAK, EvaluatorPolicy, evaluate, explain
from prompt_cache.semantic.guards import GUARDS
from prompt_cache.vectors.vector_store import Observation

ASKED = "How do I reset my password?"
SAME = "How can I reset my password?"


def _candidate(question: str = SAME, cosine: float = 0.95, age_s: float = 10.0, observations: tuple[Observation, ...] = ()) -> Candidate:
    return Candidate(question=question, cosine=cosine, age_s=age_s, observations=observations)


def test_a_paraphrase_is_served() -> None:
    verdict = evaluate(ASKED, _candidate(), EvaluatorPolicy(), 0.5)
    assert verdict.serve and verdict.refused_by is None and not verdict.explore


def test_a_threshold_of_zero_is_a_threshold_and_not_unset() -> None:
    assert EvaluatorPolicy(threshold=0.0).least_cosine == 0.0
    assert evaluate(ASKED, _candidate(cosine=0.1), EvaluatorPolicy(threshold=0.0), 0.5).serve
    assert not evaluate(ASKED, _candidate(cosine=0.1), EvaluatorPolicy(threshold=None), 0.5).serve
    assert evaluate(ASKED, _candidate(cosine=-0.1), EvaluatorPolicy(threshold=0.0), 0.5).refused_by == "threshold"


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1.0])
def test_the_ends_of_the_range_are_thresholds(threshold: float) -> None:
    assert evaluate(ASKED, _candidate(cosine=threshold), EvaluatorPolicy(threshold=threshold), 0.5).serve


@pytest.mark.parametrize("threshold", [-1.01, 1.01, math.nan, math.inf])
def test_a_threshold_out_of_range_is_refused_by_name(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        EvaluatorPolicy(threshold=threshold)


def test_a_weak_embedder_has_a_threshold_of_its_own() -> None:
    assert EvaluatorPolicy(is_weak_embedder=True).least_cosine == DEFAULT_THRESHOLD_WEAK
    assert EvaluatorPolicy().least_cosine == DEFAULT_THRESHOLD
    assert EvaluatorPolicy(is_weak_embedder=True, threshold=0.0).least_cosine == 0.0


def test_below_the_threshold_what_was_observed_of_the_entry_alone_lets_it_be_served() -> None:
    policy = EvaluatorPolicy(threshold=0.8, grey_margin=0.1, bound="suffice", target_error_rate=0.1)
    unknown = evaluate(ASKED, _candidate(cosine=0.75), policy, 0.0)
    assert (unknown.serve, unknown.refused_by, unknown.explore) == (False, "learned", True)
    seen = tuple(Observation(0.72, True) for _ in range(40))
    assert evaluate(ASKED, _candidate(cosine=0.75, observations=seen), policy, 0.999).serve
    assert evaluate(ASKED, _candidate(cosine=0.69, observations=seen), policy, 0.999).refused_by == "threshold"
    assert (
        evaluate(ASKED, _candidate("How do I not reset my password?", cosine=0.75, observations=seen), policy, 0.999).refused_by
        == "negation"
    )


def test_at_the_threshold_no_observation_is_needed_whatever_the_grey_zone() -> None:
    assert evaluate(ASKED, _candidate(cosine=0.8), EvaluatorPolicy(threshold=0.8, grey_margin=0.1), 0.0).serve


@pytest.mark.parametrize("margin", [-0.1, 2.1, math.nan])
def test_a_grey_zone_out_of_range_is_refused_by_name(margin: float) -> None:
    with pytest.raises(ValueError, match="grey_margin"):
        EvaluatorPolicy(grey_margin=margin)


def test_a_cosine_that_is_no_number_is_not_served() -> None:
    assert evaluate(ASKED, _candidate(cosine=math.nan), EvaluatorPolicy(threshold=-1.0), 0.5).refused_by == "threshold"


def test_no_cosine_serves_a_near_miss() -> None:
    """One cut-off for everything serves most near misses wrong: here none is served at a cosine of 1."""
    near = _candidate("How do I not reset my password?", cosine=1.0)
    assert evaluate(ASKED, near, EvaluatorPolicy(threshold=-1.0), 0.999).refused_by == "negation"


@pytest.mark.parametrize(
    "age_s, max_age_s, served", [(10.0, None, True), (10.0, 10.0, True), (10.0, 9.9, False), (0.0, 0.0, True), (0.1, 0.0, False)]
)
def test_an_answer_older_than_allowed_is_not_served(age_s: float, max_age_s: float | None, served: bool) -> None:
    verdict = evaluate(ASKED, _candidate(age_s=age_s), EvaluatorPolicy(max_age_s=max_age_s), 0.5)
    assert verdict.serve == served
    assert verdict.refused_by == (None if served else "freshness")


@pytest.mark.parametrize("bound", ["off", "suffice", "explore"])
def test_an_entry_that_was_wrong_is_never_served_as_near_or_farther(bound: str) -> None:
    seen = tuple([Observation(0.99, True)] * 60 + [Observation(0.9, False)])
    policy = EvaluatorPolicy(bound=bound, threshold=0.0)  # type: ignore[arg-type]
    for cosine in (0.5, 0.8, 0.9, 0.900001):
        assert evaluate(ASKED, _candidate(cosine=cosine, observations=seen), policy, 0.999999).refused_by == "seen_wrong"


def test_with_guards_sufficing_an_entry_nobody_found_wrong_is_served() -> None:
    for seen in ((), (Observation(0.8, True),), (Observation(0.8, True),) * 40):
        assert evaluate(ASKED, _candidate(observations=seen), EvaluatorPolicy(bound="suffice"), 0.0).serve


def test_with_guards_sufficing_an_entry_found_wrong_must_prove_itself_above() -> None:
    verdict = evaluate(ASKED, _candidate(cosine=0.95, observations=(Observation(0.9, False),)), EvaluatorPolicy(bound="suffice"), 0.999)
    assert verdict == (False, "learned", True)


def test_exploring_first_serves_nothing_before_it_has_seen_enough() -> None:
    verdict = evaluate(ASKED, _candidate(observations=(Observation(0.9, True),) * 5), EvaluatorPolicy(bound="explore"), 0.9999)
    assert verdict == (False, "learned", True)


def test_exploring_depends_on_the_draw_and_nothing_else() -> None:
    candidate = _candidate(cosine=0.96, observations=(Observation(0.94, True),) * 40)
    policy = EvaluatorPolicy(bound="explore", target_error_rate=0.02)
    served = [evaluate(ASKED, candidate, policy, draw / 100).serve for draw in range(100)]
    assert served == sorted(served) and 0 < sum(served) < 100
    assert served == [evaluate(ASKED, candidate, policy, draw / 100).serve for draw in range(100)]


def test_explore_is_said_only_where_the_bound_alone_refuses() -> None:
    old = _candidate("How do I change my name?", observations=(Observation(0.99, False),))
    verdict = evaluate(ASKED, old, EvaluatorPolicy(bound="explore"), 0.0)
    assert not verdict.serve and not verdict.explore


def test_explaining_runs_every_step_and_agrees_with_the_verdict() -> None:
    near = _candidate("How do I not delete 5 accounts?", cosine=0.1, age_s=99, observations=(Observation(0.5, False),))
    policy = EvaluatorPolicy(max_age_s=1, bound="explore")
    steps = explain(ASKED, near, policy, 0.0)
    assert [step.step for step in steps] == ["threshold", *GUARDS, "freshness", "seen_wrong", "learned"]
    assert next(step.step for step in steps if not step.passed) == evaluate(ASKED, near, policy, 0.0).refused_by
    assert {step.step for step in steps if not step.passed} >= {"threshold", "numbers", "negation", "freshness", "seen_wrong", "learned"}
    assert all(step.detail for step in steps if not step.passed)


@pytest.mark.parametrize("draw", [-0.1, 1.0, math.nan])
def test_a_draw_out_of_range_is_refused(draw: float) -> None:
    with pytest.raises(ValueError, match="draw"):
        evaluate(ASKED, _candidate(), EvaluatorPolicy(), draw)


@pytest.mark.parametrize(
    "field, value", [("max_age_s", -1.0), ("target_error_rate", 0.0), ("target_error_rate", 1.0), ("bound", "sometimes")]
)
def test_a_policy_out_of_range_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        EvaluatorPolicy(**{field: value})  # type: ignore[arg-type]
