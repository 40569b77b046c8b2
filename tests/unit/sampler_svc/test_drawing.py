"""Candidate rows against the specification written out for one row, one token at a time."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler_svc.candidate_rows import CandidateRows
from sampler_svc.drawing import CandidateRow, Drawing
from sampler_svc.errors import Disagreement
from sampler_svc.params import Sampling, Stopping
from sampler_svc.penalties import Penalties
from sampler_svc.philox import gumbel
from tests.examples import examples
from triserve.rpc.errors import InvalidRequest, ServiceError


@dataclass(frozen=True)
class Case:
    """One row and all its draw depends on."""

    logits: dict[int, float]  # by id, in the order in which they are sent
    sampling: Sampling
    prompt: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()
    stops: frozenset[int] = frozenset()
    min_tokens: int = 0

    @property
    def log_sum_exp(self) -> float:
        """Of the row as sent."""
        values = np.array(list(self.logits.values()), np.float32).astype(np.float64)
        return float(np.float32(np.log(np.exp(values - values.max()).sum()) + values.max()))


def changed_logits(case: Case) -> dict[int, float]:
    """Penalties, bias and bans."""
    sampling, counts = case.sampling, Counter(case.answer)
    bias = dict(zip(sampling.logit_bias_ids, sampling.logit_bias_values, strict=True))
    changed = {}
    for token, raw in case.logits.items():
        value = float(np.float32(raw))
        if token in case.prompt or token in counts:
            value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        if token in counts:
            value -= sampling.presence_penalty
            value -= sampling.frequency_penalty * counts[token]
        value += bias.get(token, 0.0)
        if token in case.stops and len(case.answer) < case.min_tokens:
            value = -math.inf
        changed[token] = value
    return changed


def reference(case: Case, log_sum_exp: float, whole_row: bool = True) -> int | None:
    """The token that must be drawn; None if none can be."""
    sampling, changed = case.sampling, changed_logits(case)
    ranked = sorted((token for token, value in changed.items() if value > -math.inf), key=lambda token: (-changed[token], token))
    if not ranked:
        return None
    if sampling.temperature == 0 or sampling.top_k == 1:
        return ranked[0]
    scaled = {token: changed[token] / sampling.temperature for token in ranked}
    ranked.sort(key=lambda token: (-scaled[token], token))
    ranked = ranked[: sampling.top_k]
    weight = {token: float(np.exp(scaled[token] - scaled[ranked[0]])) for token in ranked}
    if sampling.top_p < 1:
        untouched = all(changed[token] == float(np.float32(raw)) for token, raw in case.logits.items())
        if sampling.top_k is None and sampling.temperature == 1 and untouched:
            total = float(np.exp(log_sum_exp - scaled[ranked[0]]))
        else:
            assert whole_row or sampling.top_k is not None
            total = 0.0
            for token in ranked:
                total += weight[token]
        kept, reached = [], 0.0
        for token in ranked:
            if reached < sampling.top_p * total:
                kept.append(token)
            reached += weight[token]
        ranked = kept
    ranked = [token for token in ranked if weight[token] >= sampling.min_p]
    assert sampling.seed is not None
    seeds, positions = np.array([sampling.seed], np.uint64), np.array([len(case.answer)], np.uint64)
    noise = gumbel(seeds, positions, np.array([ranked], np.uint32))[0]
    return max(ranked, key=lambda token: (scaled[token] + noise[ranked.index(token)], -token))


def draw_cases(cases: list[Case], width: int, log_sum_exp: list[float] | None = None) -> list[int | ServiceError]:
    """All rows in one frame."""
    counts = [len(case.logits) for case in cases]
    ids = np.array([token for case in cases for token in case.logits], "<u4").tobytes()
    logits = np.array([value for case in cases for value in case.logits.values()], "<f4").tobytes()
    rows = []
    for row, case in enumerate(cases):
        penalties = Penalties(case.sampling, Stopping(99, case.min_tokens, case.stops), case.prompt)
        for token in case.answer:
            penalties.count(token)
        rows.append(CandidateRow(row, len(case.answer), case.sampling, penalties))
    sums = [case.log_sum_exp for case in cases] if log_sum_exp is None else log_sum_exp
    return Drawing(width).draw(CandidateRows.parse(ids, logits, counts, width), np.array(sums), rows)


WIDTH = 24
# A coarse grid makes ties, also with penalties; the others make awkward roundings.
LOGITS = st.one_of(st.integers(-6, 6).map(lambda n: n / 2), st.floats(-30, 30, width=32))


@st.composite
def whole_rows(draw: st.DrawFn) -> Case:
    """A row with every logit, and any parameters."""
    order = draw(st.permutations(range(WIDTH)))
    values = draw(st.lists(LOGITS, min_size=WIDTH, max_size=WIDTH))
    tokens = st.integers(0, WIDTH - 1)
    bias = draw(st.dictionaries(tokens, st.sampled_from([-100.0, -1.0, 0.5, 5.0]), max_size=3))
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 0.25, 0.7, 1.0, 1.0, 1.7, 100.0])),
        top_k=draw(st.one_of(st.none(), st.integers(1, WIDTH + 2))),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.1, 0.5, 0.75, 0.95, float(np.float32(0.9))])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.5, 1.3])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 1.5, -2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.5, -0.25])),
        logit_bias_ids=tuple(bias),
        logit_bias_values=tuple(bias.values()),
        seed=draw(st.integers(0, 2**64 - 1)),
    )
    return Case(
        logits=dict(zip(order, values, strict=True)),
        sampling=sampling,
        prompt=tuple(draw(st.lists(tokens, max_size=5))),
        answer=tuple(draw(st.lists(tokens, max_size=8))),
        stops=frozenset(draw(st.lists(tokens, max_size=3))),
        min_tokens=draw(st.sampled_from([0, 0, 4, 20])),
    )


@examples(40)
@given(st.lists(whole_rows(), min_size=1, max_size=5))
def test_a_batch_draws_what_the_specification_says_of_each_row(cases: list[Case]) -> None:
    assert draw_cases(cases, WIDTH) == [reference(case, case.log_sum_exp) for case in cases]


@examples(40)
@given(st.lists(whole_rows(), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_draw_depends_neither_on_the_batch_nor_on_the_order_of_candidates(cases: list[Case], random: object) -> None:
    together = draw_cases(cases, WIDTH)
    for case, token in zip(cases, together, strict=True):
        falling = replace(case, logits=dict(sorted(case.logits.items(), key=lambda item: (-item[1], item[0]))))
        rising = replace(case, logits=dict(sorted(case.logits.items())))
        sums = [case.log_sum_exp]
        assert draw_cases([falling], WIDTH, sums) == draw_cases([rising], WIDTH, sums) == [token]


def test_padding_beside_longer_rows_changes_no_draw() -> None:
    random = np.random.default_rng(3)
    cases = []
    for length in (1, 2, 3, 5, 17, 31, 32, 33, 60, 64):
        ids = random.permutation(64)[:length].tolist()
        sampling = Sampling(temperature=0.9, top_k=length, top_p=0.97, seed=int(random.integers(2**63)))
        cases.append(Case(dict(zip(ids, random.normal(0, 2, length).tolist(), strict=True)), sampling))
    together = draw_cases(cases, 1000)
    assert together == [draw_cases([case], 1000)[0] for case in cases] == [reference(case, 0.0) for case in cases]


def falling(case: Case) -> list[int]:
    """Ids as compute ranks them."""
    return sorted(case.logits, key=lambda token: (-np.float32(case.logits[token]), token))


@examples(40)
@given(whole_rows(), st.integers(1, 6))
def test_top_k_needs_only_k_unchanged_candidates_and_the_changed_ones(case: Case, top_k: int) -> None:
    case = replace(case, sampling=replace(case.sampling, top_k=top_k))
    changed = {*case.prompt, *case.answer, *case.sampling.logit_bias_ids, *case.stops}
    unchanged = [token for token in falling(case) if token not in changed][:top_k]
    sent = [token for token in falling(case) if token in changed or token in unchanged]
    some = replace(case, logits={token: case.logits[token] for token in sent})
    if len(sent) >= top_k:
        assert draw_cases([some], WIDTH, [case.log_sum_exp]) == draw_cases([case], WIDTH)


@examples(40)
@given(whole_rows(), st.sampled_from([0.1, 0.5, 0.75, 0.95]))
def test_top_p_at_temperature_one_needs_only_candidates_that_reach_p(case: Case, top_p: float) -> None:
    case = Case(case.logits, Sampling(top_p=top_p, min_p=case.sampling.min_p, seed=case.sampling.seed))
    probabilities = np.exp(np.array([case.logits[token] for token in falling(case)]) - case.log_sum_exp)
    enough = int(np.searchsorted(np.cumsum(probabilities), top_p + 1e-4)) + 1
    some = replace(case, logits={token: case.logits[token] for token in falling(case)[:enough]})
    assert draw_cases([some], WIDTH, [case.log_sum_exp]) == draw_cases([case], WIDTH)


ROW = {0: 1.0, 1: 0.5, 2: -1.0, 3: 0.0}


@pytest.mark.parametrize(
    ("case", "log_sum_exp", "why"),
    [
        (Case({0: math.nan, 1: 0.0}, Sampling(seed=1)), 0.0, "NaN or infinite"),
        (Case({0: math.inf, 1: 0.0}, Sampling(temperature=0.0)), 0.0, "NaN or infinite"),
        (Case(ROW, Sampling(seed=1)), math.nan, "log_sum_exp"),
        (Case({}, Sampling(temperature=0.0)), 0.0, "0 candidates"),
        (Case(ROW, Sampling(top_k=5, seed=1)), 2.0, "needs 5"),
        (Case(ROW, Sampling(temperature=0.5, top_p=0.9, seed=1)), 2.0, "whole row"),
        (Case(ROW, Sampling(top_p=0.9, logit_bias_ids=(1,), logit_bias_values=(1.0,), seed=1)), 2.0, "whole row"),
        (Case({3: -math.inf}, Sampling(temperature=0.0)), 2.0, "none of 1"),
        (Case({3: 1.0}, Sampling(temperature=0.0), stops=frozenset({3}), min_tokens=2), 2.0, "none of 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_row_that_breaks_the_contract_fails_alone(case: Case, log_sum_exp: float, why: str) -> None:
    good = Case(ROW, Sampling(temperature=0.7, seed=5))
    before, broken, after = draw_cases([good, case, good], 8, [2.0, log_sum_exp, 2.0])
    assert isinstance(broken, Disagreement)
    assert why in broken.detail
    assert before == after == draw_cases([good], 8, [2.0])[0]


def test_a_greedy_row_needs_one_candidate_whatever_else_is_set() -> None:
    case = Case({3: 1.0}, Sampling(temperature=0.0, top_k=5, top_p=0.5, min_p=0.5))
    assert draw_cases([case], 8, [2.0]) == [3]


def test_min_tokens_that_bans_every_token_is_the_callers_fault() -> None:
    case = Case({0: 1.0, 1: 2.0}, Sampling(seed=1), stops=frozenset({0, 1}), min_tokens=1)
    (error,) = draw_cases([case], 2)
    assert isinstance(error, InvalidRequest)
    assert error.field == "min_tokens"


def test_top_k_is_each_rows_own() -> None:
    """PPL.LLM drew the whole batch with the first request's top_k."""
    flat = dict.fromkeys(range(16), 0.0)
    cases = [Case(flat, Sampling(top_k=top_k, seed=seed)) for seed in range(60) for top_k in (2, 1, 9)]
    drawn = draw_cases(cases, 16)
    assert [set(drawn[offset::3]) for offset in range(3)] == [{0, 1}, {0}, set(range(9))]


def test_temperature_holds_at_every_step_and_beside_penalties() -> None:
    """PPL.LLM used the default temperature on steps at which the batch had not changed, or penalties were on."""
    row = {0: 3.0, 1: 2.0, 2: 1.0}
    for sampling in (Sampling(temperature=1e-3, seed=3), Sampling(temperature=1e-3, frequency_penalty=0.001, seed=3)):
        drawn = [draw_cases([Case(row, sampling, answer=(0,) * step)], 3)[0] for step in range(30)]
        assert drawn == [0] * 30


def test_a_seed_is_honoured() -> None:
    """PPL.LLM drew from the C library's generator, whatever the seed."""
    flat = dict.fromkeys(range(1000), 0.0)

    def tokens(seed: int) -> list[int | ServiceError]:
        return [draw_cases([Case(flat, Sampling(seed=seed), answer=(0,) * step)], 1000)[0] for step in range(5)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)


def test_presence_and_frequency_penalties_are_honoured() -> None:
    """PPL.LLM took them and passed null to its kernel."""
    row = {0: 2.0, 1: 1.0}
    presence, frequency = Sampling(temperature=0.0, presence_penalty=1.5), Sampling(temperature=0.0, frequency_penalty=0.6)
    once, twice = (0,), (0, 0)
    assert [draw_cases([Case(row, presence, answer=answer)], 2)[0] for answer in ((), once, twice)] == [0, 1, 1]
    assert [draw_cases([Case(row, frequency, answer=answer)], 2)[0] for answer in ((), once, twice)] == [0, 0, 1]
    assert draw_cases([Case(row, frequency, prompt=twice)], 2) == [0], "only the answer counts"
