"""The breaker opens after failures in a row, lets one probe through, and closes on success."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.circuit_breaker import CircuitBreaker


def opened(*, now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(failures=2, open_s=1.0)
    breaker.failed(now)
    breaker.failed(now)
    return breaker


def test_it_opens_only_after_failures_in_a_row() -> None:
    breaker = CircuitBreaker(failures=2, open_s=1.0)
    assert not breaker.failed(0)
    breaker.succeeded()
    assert not breaker.failed(0)
    assert breaker.closed
    assert breaker.failed(0)
    assert not breaker.closed


@pytest.mark.parametrize(("now", "due"), [(0.9, False), (1.0, True)])
def test_a_probe_is_due_when_the_open_time_is_over(now: float, due: bool) -> None:
    assert opened().take_probe(now) is due


def test_only_one_caller_probes() -> None:
    breaker = opened()
    assert [breaker.take_probe(2.0) for _ in range(3)] == [True, False, False]


def test_a_failed_probe_opens_it_for_the_same_time_again() -> None:
    breaker = opened()
    breaker.take_probe(2.0)
    assert not breaker.failed(2.5)
    assert not breaker.take_probe(3.4)
    assert breaker.take_probe(3.5)


def test_a_successful_probe_closes_it_and_forgets_the_failures() -> None:
    breaker = opened()
    breaker.take_probe(2.0)
    assert breaker.succeeded()
    assert breaker.closed
    assert not breaker.failed(3.0)


def test_late_failures_do_not_postpone_the_probe() -> None:
    breaker = opened()
    breaker.failed(0.9)
    assert breaker.take_probe(1.0)


def test_a_closed_breaker_has_no_probe() -> None:
    assert not CircuitBreaker(failures=2, open_s=1.0).take_probe(100.0)


@given(st.lists(st.sampled_from(["fail", "succeed", "probe", "wait"])))
def test_it_is_never_stuck(actions: list[str]) -> None:
    breaker, now, probing = CircuitBreaker(failures=2, open_s=1.0), 0.0, False
    for action in actions:
        match action:
            case "fail":
                breaker.failed(now)
                probing = False
            case "succeed":
                breaker.succeeded()
                probing = False
            case "probe":
                probing = breaker.take_probe(now) or probing
            case "wait":
                now += 0.5
    if not breaker.closed and not probing:
        assert breaker.take_probe(now + 1.0)
