"""The predictor of answer lengths: quantiles of what was seen, within bounds."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from compute_svc.scheduler.length_predictor import WindowedLengthPredictor
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request
from tests.fakes.scheduler_steps import request_of, small_config, step


def _request(prompt_tokens: int = 10, *, tenant: str = "one", max_tokens: int = 1000) -> Request:
    return Request(1, tenant, np.zeros(prompt_tokens, np.int64), np.empty(0, np.int64), max_tokens, 0.0)


def _observe(predictor: WindowedLengthPredictor, lengths: list[int], **request: Any) -> None:
    for length in lengths:
        predictor.observe(_request(**request), length)


def test_where_nothing_is_known_a_fixed_length_is_expected() -> None:
    assert WindowedLengthPredictor(cold_start_tokens=100).predict(_request()) == 100


@pytest.mark.parametrize("seen", [0, 20])
def test_no_more_than_max_tokens_is_expected(seen: int) -> None:
    predictor = WindowedLengthPredictor(cold_start_tokens=100)
    _observe(predictor, [90] * seen)
    assert predictor.predict(_request(max_tokens=7)) == 7


def test_the_quantile_of_the_tenants_answers_is_expected() -> None:
    predictor = WindowedLengthPredictor(quantile=0.5)
    _observe(predictor, [10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert predictor.predict(_request()) == 50


def test_a_high_quantile_of_few_answers_is_the_longest() -> None:
    predictor = WindowedLengthPredictor(quantile=0.99)
    _observe(predictor, [3, 9, 1, 4, 1, 5, 2, 6])
    assert predictor.predict(_request()) == 9


def test_too_few_answers_are_not_believed() -> None:
    predictor = WindowedLengthPredictor(min_answers=3, cold_start_tokens=100)
    _observe(predictor, [5, 5])
    assert predictor.predict(_request()) == 100
    _observe(predictor, [5])
    assert predictor.predict(_request()) == 5


def test_a_new_tenant_is_expected_to_be_like_the_others() -> None:
    predictor = WindowedLengthPredictor()
    _observe(predictor, [33] * 4, tenant="one")
    _observe(predictor, [33] * 4, tenant="two")
    assert predictor.predict(_request(tenant="three")) == 33


def test_a_tenants_own_answers_come_before_those_of_all() -> None:
    predictor = WindowedLengthPredictor()
    _observe(predictor, [5] * 8, tenant="one")
    _observe(predictor, [500] * 8, tenant="two")
    assert (predictor.predict(_request(tenant="one")), predictor.predict(_request(tenant="two"))) == (5, 500)


def test_prompts_of_other_lengths_are_a_class_of_their_own() -> None:
    predictor = WindowedLengthPredictor(cold_start_tokens=100)
    _observe(predictor, [5] * 8, prompt_tokens=15)
    assert [predictor.predict(_request(length)) for length in (7, 8, 15, 16)] == [100, 5, 5, 100]


def test_old_answers_are_forgotten() -> None:
    predictor = WindowedLengthPredictor(window=8)
    _observe(predictor, [500] * 8)
    _observe(predictor, [5] * 8)
    assert predictor.predict(_request()) == 5


def test_the_tenant_seen_the_longest_ago_makes_room() -> None:
    predictor = WindowedLengthPredictor(max_tenants=2, window=8)
    for tenant, length in (("one", 10), ("two", 20)):
        _observe(predictor, [length] * 8, tenant=tenant)
    predictor.predict(_request(tenant="one"))
    _observe(predictor, [30] * 8, tenant="three")
    assert predictor.num_tenants == 2
    # "two" has no window any more: all tenants' latest answers are those of "three".
    assert [predictor.predict(_request(tenant=tenant)) for tenant in ("one", "two", "three")] == [10, 30, 30]


def test_predicting_for_strangers_remembers_nobody() -> None:
    predictor = WindowedLengthPredictor()
    for number in range(1000):
        predictor.predict(_request(tenant=str(number)))
    assert predictor.num_tenants == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantile": 0.0}, "quantile is 0.0"),
        ({"quantile": 1.0}, "quantile is 1.0"),
        ({"quantile": math.nan}, "quantile is nan"),
        ({"min_answers": 0}, "min_answers is 0"),
        ({"max_tenants": 0}, "max_tenants is 0"),
        ({"cold_start_tokens": 0}, "cold_start_tokens is 0"),
        ({"window": 7}, "window is 7, it must be at least min_answers, 8"),
    ],
)
def test_values_out_of_range_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WindowedLengthPredictor(**changes)


@given(st.lists(st.integers(1, 10_000), min_size=8, max_size=64), st.floats(0.01, 0.99))
def test_at_least_the_quantiles_share_of_the_answers_is_no_longer_than_predicted(lengths: list[int], quantile: float) -> None:
    predictor = WindowedLengthPredictor(quantile=quantile)
    _observe(predictor, lengths)
    predicted = predictor.predict(_request(max_tokens=10_000))
    assert predicted in lengths
    assert sum(length <= predicted for length in lengths) >= quantile * len(lengths)
    # And it is the least that does: without the answer to come, one rank less would be short of it.
    assert sum(length < predicted for length in lengths) < quantile * (len(lengths) + 1)


class PredictorMachine(RuleBasedStateMachine):
    """Against all answers in full, of which the last ones count."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor = WindowedLengthPredictor(quantile=0.5, window=5, min_answers=2, max_tenants=2, cold_start_tokens=77)
        self.own: OrderedDict[str, dict[int, list[int]]] = OrderedDict()
        self.all: dict[int, list[int]] = {}

    @rule(tenant=st.sampled_from("abc"), prompt=st.integers(1, 9), answer=st.integers(1, 50))
    def observe(self, tenant: str, prompt: int, answer: int) -> None:
        if tenant not in self.own and len(self.own) == 2:
            self.own.popitem(last=False)
        for windows in (self.own.setdefault(tenant, {}), self.all):
            windows.setdefault(prompt.bit_length(), []).append(answer)
        self.own.move_to_end(tenant)
        self.predictor.observe(_request(prompt, tenant=tenant), answer)

    @rule(tenant=st.sampled_from("abc"), prompt=st.integers(1, 9), max_tokens=st.integers(1, 100))
    def predict(self, tenant: str, prompt: int, max_tokens: int) -> None:
        expected = 77
        for windows in (self.all, self.own.get(tenant, {})):
            latest = windows.get(prompt.bit_length(), [])[-5:]
            if len(latest) >= 2:
                expected = sorted(latest)[math.ceil((len(latest) + 1) / 2) - 1]
        if tenant in self.own:
            self.own.move_to_end(tenant)
        assert self.predictor.predict(_request(prompt, tenant=tenant, max_tokens=max_tokens)) == min(expected, max_tokens)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.predictor.num_tenants == len(self.own) <= 2


TestPredictorMachine = PredictorMachine.TestCase


def test_who_waited_is_predicted_by_what_has_ended_since() -> None:
    predictor = WindowedLengthPredictor()
    scheduler = Scheduler(small_config(max_running_requests=1, num_pages=64), predictor=predictor)
    for number in range(1, 9):
        scheduler.submit(request_of(number, 5, max_tokens=3))
    last = scheduler.submit(request_of(9, 5, max_tokens=40))
    assert last.predicted_tokens == 40
    while last.admitted_at is None:
        step(scheduler)
    assert last.predicted_tokens == 3
