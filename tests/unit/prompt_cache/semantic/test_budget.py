"""A scope is switched off on evidence, not by bad luck, and not late."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.semantic.budget import HitBudget, HitCounts, false_hit_bound, lower_bound, upper_bound

BUDGET = HitBudget()


def _after(results: list[bool], now_s: float = 1000.0, budget: HitBudget = BUDGET) -> HitCounts:
    counts = HitCounts()
    for is_same in results:
        counts = budget.with_check(budget.with_hit(counts, now_s), is_same, now_s)
    return counts


@pytest.mark.parametrize(
    "wrong, checked, confidence, low, high",
    [
        (0, 10, 0.95, 0.0, 0.258866),
        (1, 10, 0.95, 0.005116, 0.394163),
        (5, 100, 0.975, 0.016432, 0.112835),
        (10, 10, 0.95, 0.741134, 1.0),
        (3, 1000, 0.99, 0.000436, 0.010011),
    ],
)
def test_bounds_are_those_of_clopper_and_pearson(wrong: int, checked: int, confidence: float, low: float, high: float) -> None:
    assert lower_bound(wrong, checked, confidence) == pytest.approx(low, abs=2e-6)
    assert upper_bound(wrong, checked, confidence) == pytest.approx(high, abs=2e-6)


@given(st.integers(1, 100_000), st.integers(0, 100_000), st.sampled_from([0.9, 0.95, 0.99]))
def test_bounds_hold_the_observed_rate_between_them(checked: int, wrong: int, confidence: float) -> None:
    wrong = min(wrong, checked)
    assert 0.0 <= lower_bound(wrong, checked, confidence) <= wrong / checked <= upper_bound(wrong, checked, confidence) <= 1.0


def test_nothing_checked_proves_nothing() -> None:
    assert false_hit_bound(HitCounts()) == 1.0
    assert not BUDGET.is_exceeded(HitCounts())


def test_three_hundred_right_checks_prove_one_percent() -> None:
    assert false_hit_bound(HitCounts(checked=299, served=299)) < 0.01 < false_hit_bound(HitCounts(checked=297, served=297))


@pytest.mark.parametrize("before", [0, 1, 5, 50, 500])
def test_the_first_wrong_check_never_switches_a_scope_off(before: int) -> None:
    assert not BUDGET.is_off(_after([True] * before + [False]), 1000.0)


@pytest.mark.parametrize("wrong, checked", [(2, 15), (3, 44), (5, 129), (10, 415)])
def test_a_scope_goes_off_exactly_where_the_rule_says(wrong: int, checked: int) -> None:
    assert BUDGET.is_exceeded(HitCounts(served=checked, checked=checked, wrong=wrong))
    assert not BUDGET.is_exceeded(HitCounts(served=checked, checked=checked + 1, wrong=wrong))


def test_a_clearly_bad_scope_goes_off_soon() -> None:
    source = random.Random(3)
    off = 0
    for _ in range(50):
        off += BUDGET.is_off(_after([source.random() >= 0.2 for _ in range(40)]), 1000.0)
    assert off >= 49


def test_a_scope_well_within_its_budget_stays_on() -> None:
    source = random.Random(4)
    off = sum(BUDGET.is_off(_after([source.random() >= 0.002 for _ in range(400)]), 1000.0) for _ in range(20))
    assert off <= 1


def test_a_scope_comes_back_after_its_pause_and_counts_anew() -> None:
    off = _after([False, False], now_s=1000.0)
    assert BUDGET.is_off(off, 1000.0) and BUDGET.is_off(off, 1000.0 + BUDGET.pause_s - 1)
    assert not BUDGET.is_off(off, 1000.0 + BUDGET.pause_s)
    again = BUDGET.with_check(off, True, 1000.0 + BUDGET.pause_s)
    assert (again.served, again.checked, again.wrong, again.off_since_s) == (0, 1, 0, 0)


def test_right_checks_do_not_bring_a_scope_back_early() -> None:
    counts = _after([False, False], now_s=1000.0)
    for _ in range(1000):
        counts = BUDGET.with_check(counts, True, 1001.0)
    assert BUDGET.is_off(counts, 1001.0) and counts.off_since_s == 1000


def test_a_long_good_past_does_not_hide_a_bad_present() -> None:
    good = _after([True] * 5000, now_s=1000.0)
    later = 1000.0 + BUDGET.period_s
    for _ in range(2):
        good = BUDGET.with_check(good, False, later)
    assert BUDGET.is_off(good, later)


@given(st.lists(st.booleans(), max_size=50))
def test_counts_survive_a_store_of_small_integers(results: list[bool]) -> None:
    counts = _after(results)
    assert HitCounts.from_ints(counts.as_ints()) == counts
    assert all(isinstance(number, int) for number in counts.as_ints())


@pytest.mark.parametrize("ints", [(1, 2, 3), (1, 1, 2, 0, 0), (-1, 0, 0, 0, 0)])
def test_counts_that_cannot_be_are_refused(ints: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        HitCounts.from_ints(ints)


@pytest.mark.parametrize("field, value", [("limit", 0.0), ("limit", 1.0), ("pause_s", 0), ("period_s", 0)])
def test_a_budget_out_of_range_names_the_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        HitBudget(**{field: value})  # type: ignore[arg-type]


def test_counts_are_those_of_a_week_and_a_pause_is_of_a_quarter_of_a_day() -> None:
    budget, day = HitBudget(), 86_400
    counts = budget.with_hit(budget.with_hit(HitCounts(), 1.0), 7 * day)
    assert counts.served == 2, "a second less than a week later"
    assert budget.with_hit(counts, 1 + 7 * day).served == 1
    bad = HitCounts(served=2, checked=2, wrong=2, since_s=1, off_since_s=10)
    assert budget.is_off(bad, 10 + day / 4 - 1) and not budget.is_off(bad, 10 + day / 4)
