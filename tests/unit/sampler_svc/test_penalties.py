"""Changes to logits, in their order, on any subset of ids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sampler_svc.penalties import Lookup, Penalties
from triserve.rpc.sampling import Sampling, Stopping


def changed(penalties: Penalties, ids: list[int], logits: list[float], position: int = 0) -> list[float]:
    values: NDArray[np.float64] = np.array(logits)
    penalties.apply(np.array(ids, np.uint32), values, position, Lookup(10_000))
    return [float(value) for value in values]


def test_repetition_divides_positive_and_multiplies_negative_logits_of_prompt_and_answer() -> None:
    penalties = Penalties(Sampling(repetition_penalty=2.0), Stopping(9), [1, 1, 2])
    penalties.count(3)
    assert changed(penalties, [3, 2, 1, 0], [4.0, -4.0, 0.0, 4.0]) == [2.0, -8.0, 0.0, 4.0]


def test_presence_counts_once_and_frequency_each_time_and_the_prompt_not_at_all() -> None:
    penalties = Penalties(Sampling(presence_penalty=1.0, frequency_penalty=0.25), Stopping(9), [1])
    for token in (2, 2, 3):
        penalties.count(token)
    assert changed(penalties, [1, 2, 3], [0.0, 0.0, 0.0]) == [0.0, -1.5, -1.25]


def test_bias_comes_after_penalties() -> None:
    penalties = Penalties(Sampling(repetition_penalty=2.0, logit_bias_ids=(1,), logit_bias_values=(3.0,)), Stopping(9), [1])
    assert changed(penalties, [1], [4.0]) == [5.0]


def test_stop_ids_are_banned_before_min_tokens_and_not_from_then_on() -> None:
    penalties = Penalties(Sampling(), Stopping(9, min_tokens=2, stop_token_ids=frozenset({1, 7})), [])
    for position, banned in ((0, True), (1, True), (2, False)):
        assert penalties.bans_at(position) is penalties.changes_at(position) is banned
        assert changed(penalties, [0, 1], [1.0, 1.0], position) == [1.0, -np.inf if banned else 1.0]


def test_minus_infinity_stays_and_becomes_no_nan() -> None:
    sampling = Sampling(
        repetition_penalty=0.5, presence_penalty=-2.0, frequency_penalty=-3.0, logit_bias_ids=(1,), logit_bias_values=(9.0,)
    )
    penalties = Penalties(sampling, Stopping(9), [1])
    penalties.count(1)
    assert changed(penalties, [1, 0], [-np.inf, -np.inf]) == [-np.inf, -np.inf]


def test_nothing_changes_before_there_is_something_to_punish() -> None:
    penalties = Penalties(Sampling(presence_penalty=1.0), Stopping(9), [1, 2])
    assert not penalties.changes_at(0)
    penalties.count(5)
    assert penalties.changes_at(1)
    assert not Penalties(Sampling(), Stopping(9, min_tokens=5), [1]).changes_at(0), "no stop id to ban"


def test_long_answers_with_many_different_tokens_are_counted() -> None:
    penalties = Penalties(Sampling(frequency_penalty=1.0), Stopping(9), [])
    for token in (*range(500), *range(0, 500, 7)):
        penalties.count(token)
    ids = [499, 0, 7, 8, 501]
    assert changed(penalties, ids, [0.0] * 5) == [-1.0, -2.0, -2.0, -1.0, 0.0]


def test_a_lookup_is_empty_after_each_use() -> None:
    lookup = Lookup(10)
    ids = np.arange(10, dtype=np.uint32)
    assert lookup.values(ids, np.array([3, 4], np.uint32), 2.0).tolist() == [0, 0, 0, 2, 2, 0, 0, 0, 0, 0]
    assert lookup.values(ids, np.array([], np.uint32), 2.0).tolist() == [0.0] * 10
