"""Candidates are exact: drawing from them gives the token that drawing from the full row gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.engine.candidates import draw_greedy, select_candidates, top_of_rows
from compute_svc.engine.draw_rule import DEFAULT_LIMITS, NEVER, CandidateLimits, DrawRule
from compute_svc.wire.request import Request, SamplingOptions
from tests.examples import examples

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A request in the middle of its answer, and what only a sampler knows of it."""

    request: Request
    answer: tuple[int, ...]
    biases: tuple[float, ...] = ()

    @property
    def position(self) -> int:
        return len(self.answer)

    def rule(self, width: int, limits: CandidateLimits = DEFAULT_LIMITS) -> DrawRule:
        rule = DrawRule(self.request, width, limits)
        tokens = np.concatenate((self.request.prompt, np.array(self.answer, dtype=np.int64)))
        rule.see(tokens, tokens.size)
        return rule


def _case(
    options: SamplingOptions,
    *,
    prompt: tuple[int, ...] = (0,),
    answer: tuple[int, ...] = (),
    stops: frozenset[int] = frozenset(),
    min_tokens: int = 0,
    biases: tuple[float, ...] = (),
) -> Case:
    ids = np.array(prompt, dtype=np.int64)
    request = Request(1, "", ids, np.empty(0, np.int64), 1000, 0.0, min_tokens=min_tokens, stop_token_ids=stops, sampling=options)
    return Case(request, answer, biases)


def _noise(position: int, ids: npt.NDArray[np.integer]) -> Floats:
    """Stand-in for the position-keyed noise: any value the real one can take, fixed for an id and a position."""
    words = np.array([np.random.default_rng([position, int(token)]).integers(0, 1 << 32) for token in ids], dtype=np.float64)
    return np.asarray(-np.log(-np.log((words + 0.5) / 2**32)), dtype=np.float64)


def _draw(case: Case, ids: npt.NDArray[np.integer], logits: npt.NDArray[np.float32], log_sum_exp: float, noise: Floats) -> int:
    """A sampler, written without any thought of speed: over some ids as if they were all there are.

    Args:
        noise: [width], by token id.
    """
    options = case.request.sampling
    values: dict[int, float] = dict(zip(ids.tolist(), logits.astype(np.float64).tolist(), strict=True))
    assert len(values) == ids.size, "no id comes twice"
    answer, prompt = list(case.answer), case.request.prompt.tolist()
    for token in values:
        if options.repetition_penalty != 1 and token in (*prompt, *answer):
            values[token] = values[token] / options.repetition_penalty if values[token] > 0 else values[token] * options.repetition_penalty
        values[token] -= options.presence_penalty * (token in answer) + options.frequency_penalty * answer.count(token)
        if token in options.bias_ids:
            values[token] += case.biases[options.bias_ids.index(token)]
        if case.position < case.request.min_tokens and token in case.request.stop_token_ids:
            values[token] = -math.inf
    ranked = sorted((token for token in values if values[token] > -math.inf), key=lambda token: (-values[token], token))
    if options.temperature == 0:
        return ranked[0]
    kept = ranked[: options.top_k]
    scaled = {token: values[token] / options.temperature for token in kept}
    if options.top_p < 1:
        whole = math.log(sum(math.exp(value - scaled[kept[0]]) for value in scaled.values())) + scaled[kept[0]]
        changed = any(values[token] != float(logit) for token, logit in zip(ids.tolist(), logits, strict=True) if token in values)
        if options.top_k is None and options.temperature == 1 and not changed:
            whole = log_sum_exp
        mass, count = 0.0, 0
        while count < len(kept) and mass < options.top_p:
            mass += math.exp(scaled[kept[count]] - whole)
            count += 1
        kept = kept[:count]
    kept = [token for token in kept if math.exp(scaled[token] - scaled[kept[0]]) >= options.min_p]
    return min(kept, key=lambda token: (-(scaled[token] + noise[token]), token))


def _assert_exact(logits: npt.NDArray[np.float32], cases: list[Case], limits: CandidateLimits = DEFAULT_LIMITS) -> None:
    width = logits.shape[1]
    rules = [case.rule(width, limits) for case in cases]
    chosen = select_candidates(torch.from_numpy(logits), rules, [case.position for case in cases], limits)
    start = 0
    for row, case in enumerate(cases):
        end = start + int(chosen.counts[row])
        ids, values = chosen.ids[start:end].astype(np.int64), chosen.logits[start:end]
        start = end
        assert (values == logits[row, ids]).all()
        if case.request.sampling.top_logprobs is not None:
            assert set(_ranking(logits[row : row + 1])[: case.request.sampling.top_logprobs]) <= set(ids.tolist())
        if case.position >= rules[row].drawn_from:
            everything = np.arange(width)
            assert draw_greedy(torch.from_numpy(logits[row : row + 1])).tokens == [
                _draw(case, everything, logits[row], 0.0, np.zeros(width))
            ]
            continue
        whole = float(chosen.log_sum_exp[row])
        for seed in range(3):
            # The extremes of the noise are where an id far behind comes to the front.
            noise = _noise(seed, np.arange(width))
            if seed:
                noise = np.where(noise > np.median(noise), 22.87, -3.13) if seed == 1 else np.where(np.arange(width) % 7 == 0, 22.87, -3.13)
            assert _draw(case, ids, values, whole, noise) == _draw(case, np.arange(width), logits[row], whole, noise)
    assert start == chosen.ids.size


_ids = st.integers(0, 39)
_options = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([None, None, 1, 3, 10, 60]),
    top_p=st.sampled_from([1.0, 1.0, 0.5, 0.9]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.0, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5, -0.5]),
    bias_ids=st.lists(_ids, max_size=3, unique=True).map(tuple),
    top_logprobs=st.sampled_from([None, 0, 5]),
)


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    options = draw(_options)
    return _case(
        options,
        prompt=tuple(draw(st.lists(_ids, min_size=1, max_size=6))),
        answer=tuple(draw(st.lists(_ids, max_size=6))),
        stops=frozenset(draw(st.lists(_ids, max_size=3))),
        min_tokens=draw(st.sampled_from([0, 0, 4])),
        biases=tuple(draw(st.sampled_from([-100.0, -1.0, 1.0, 100.0])) for _ in options.bias_ids),
    )


@given(st.lists(_cases(), min_size=1, max_size=4), st.sampled_from([3, 30, 1 << 20]), st.integers(0, 1 << 30))
@examples(150)
def test_the_draw_from_candidates_is_the_draw_from_the_full_row(cases: list[Case], levels: int, seed: int) -> None:
    # Small limits make rows of 40 logits go through every branch that rows of 128,000 go through.
    limits = CandidateLimits(first_guess=4, most=12, share=1)
    logits = np.random.default_rng(seed).integers(0, levels, (len(cases), 40)).astype(np.float32) * np.float32(40.0 / levels) - 20
    _assert_exact(logits.astype(np.float32), cases, limits)


def _row(width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, (1, width)).astype(np.float32)


def _chosen_ids(logits: npt.NDArray[np.float32], case: Case) -> list[int]:
    chosen = select_candidates(torch.from_numpy(logits), [case.rule(logits.shape[1])], [case.position])
    return [int(token) for token in chosen.ids]


def _ranking(logits: npt.NDArray[np.float32]) -> list[int]:
    return [int(token) for token in np.lexsort((np.arange(logits.shape[1]), -logits[0]))]


def test_top_k_sends_k_and_nothing_else() -> None:
    logits = _row(5000)
    assert _chosen_ids(logits, _case(SamplingOptions(temperature=1.0, top_k=50))) == _ranking(logits)[:50]


def test_equal_logits_at_the_cut_are_taken_by_rising_id() -> None:
    logits = np.zeros((1, 5000), dtype=np.float32)
    logits[0, [4000, 3000]] = 1.0
    assert _chosen_ids(logits, _case(SamplingOptions(temperature=1.0, top_k=5))) == [3000, 4000, 0, 1, 2]


def test_log_probabilities_ask_for_one_more_than_reported() -> None:
    logits = _row(5000)
    assert _chosen_ids(logits, _case(SamplingOptions(temperature=0.0, top_logprobs=4))) == _ranking(logits)[:5]


def test_a_greedy_row_with_a_penalty_sends_as_far_as_the_first_unseen_id() -> None:
    logits = _row(5000)
    ranking = _ranking(logits)
    case = _case(SamplingOptions(temperature=0.0, repetition_penalty=1.2), prompt=tuple(ranking[:3]))
    assert _chosen_ids(logits, case) == ranking[:4]


def test_ids_a_penalty_could_raise_follow_in_rising_order() -> None:
    logits = _row(5000)
    ranking = _ranking(logits)
    seen = (ranking[4000], ranking[3000], ranking[0])
    case = _case(SamplingOptions(temperature=1.0, top_k=2, presence_penalty=-1.0), answer=seen)
    assert _chosen_ids(logits, case) == [*ranking[:3], *sorted(seen[:2])]


def test_penalties_on_a_long_prompt_do_not_send_the_whole_prompt() -> None:
    logits = _row(20_000)
    prompt = tuple(range(0, 20_000, 2))
    assert len(_chosen_ids(logits, _case(SamplingOptions(temperature=1.0, top_k=20, repetition_penalty=1.1), prompt=prompt))) < 100


def test_an_unbounded_draw_sends_every_id() -> None:
    assert _chosen_ids(_row(5000), _case(SamplingOptions(temperature=2.0))) == list(range(5000))


def test_an_unbounded_draw_of_a_peaked_row_sends_what_the_noise_can_reach() -> None:
    logits = _row(5000)
    ranking = _ranking(logits)
    logits[0, ranking[:3]] += 60
    assert _chosen_ids(logits, _case(SamplingOptions(temperature=1.0))) == ranking[:3]


def test_top_p_sends_the_nucleus_when_the_row_proves_it() -> None:
    logits = _row(5000)
    ranking = _ranking(logits)
    logits[0, ranking[:5]] += 10
    ids = _chosen_ids(logits, _case(SamplingOptions(temperature=1.0, top_p=0.5)))
    assert ids == ranking[: len(ids)]
    probabilities = np.exp(logits[0].astype(np.float64)) / np.exp(logits[0].astype(np.float64)).sum()
    assert probabilities[ids].sum() >= 0.5 and len(ids) <= 6


@pytest.mark.parametrize(
    "options",
    [SamplingOptions(temperature=0.7, top_p=0.5), SamplingOptions(temperature=1.0, top_p=0.5, bias_ids=(1,))],
    ids=["temperature", "bias"],
)
def test_top_p_sends_every_id_where_the_sum_of_the_row_is_not_on_the_wire(options: SamplingOptions) -> None:
    logits = _row(5000)
    logits[0, 7] += 100
    assert len(_chosen_ids(logits, _case(options, biases=(1.0,)))) == 5000


def test_too_large_a_top_k_sends_every_id() -> None:
    assert _chosen_ids(_row(5000), _case(SamplingOptions(temperature=1.0, top_k=1025))) == list(range(5000))


def test_more_than_there_is_is_not_asked_for() -> None:
    assert sorted(_chosen_ids(_row(20), _case(SamplingOptions(temperature=1.0, top_k=50, top_logprobs=30)))) == list(range(20))


def test_banned_stop_ids_do_not_displace_what_may_be_drawn() -> None:
    logits = _row(5000)
    ranking = _ranking(logits)
    stops = frozenset(ranking[:2])
    assert _chosen_ids(logits, _case(SamplingOptions(temperature=0.0), stops=stops, min_tokens=1)) == ranking[:3]


@pytest.mark.parametrize(
    ("options", "min_tokens", "expected"),
    [
        (SamplingOptions(temperature=0.0), 0, 0),
        (SamplingOptions(temperature=0.0, top_logprobs=3), 0, 0),
        (SamplingOptions(temperature=0.0), 5, 5),
        (SamplingOptions(temperature=0.0, bias_ids=(3,)), 0, NEVER),
        (SamplingOptions(temperature=0.0, frequency_penalty=0.1), 0, NEVER),
        (SamplingOptions(temperature=0.1, top_k=1), 0, NEVER),
    ],
)
def test_only_greedy_rows_that_nothing_modifies_are_drawn_by_compute(options: SamplingOptions, min_tokens: int, expected: int) -> None:
    assert _case(options, stops=frozenset({9}), min_tokens=min_tokens).rule(40).drawn_from == expected


def test_min_tokens_without_stop_ids_changes_nothing() -> None:
    assert _case(SamplingOptions(temperature=0.0), min_tokens=5).rule(40).drawn_from == 0


def test_the_log_sum_exp_does_not_depend_on_the_batch() -> None:
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 4, (33, 3001)).astype(np.float32))
    case = _case(SamplingOptions(temperature=1.0, top_k=4))
    together = select_candidates(logits, [case.rule(3001)] * 33, [0] * 33).log_sum_exp
    alone = [select_candidates(logits[row : row + 1], [case.rule(3001)], [0]).log_sum_exp[0] for row in range(33)]
    assert together.tolist() == alone
    assert together == pytest.approx(torch.logsumexp(logits.double(), 1).numpy(), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("top_k", [3, None])
def test_a_broken_row_has_no_candidates_and_harms_no_other(bad: float, top_k: int | None) -> None:
    logits = np.concatenate((_row(50, 1), _row(50, 2), _row(50, 3)))
    logits[1, 30] = bad
    case = _case(SamplingOptions(temperature=1.0, top_k=top_k))
    chosen = select_candidates(torch.from_numpy(logits), [case.rule(50)] * 3, [0] * 3)
    assert chosen.is_finite.tolist() == [True, False, True]
    assert chosen.counts[1] == 0
    _assert_exact(logits[[0, 2]], [case, case])


def test_a_row_of_nothing_but_minus_infinity_is_broken() -> None:
    logits = torch.full((1, 8), -math.inf)
    assert draw_greedy(logits).is_finite == [False]
    assert select_candidates(logits, [_case(SamplingOptions(temperature=1.0)).rule(8)], [0]).is_finite.tolist() == [False]


def test_greedy_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    assert draw_greedy(logits).tokens == [1, 0]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 1 << 30))
def test_the_top_of_rows_is_sorted_by_logit_then_id(width: int, k: int, levels: int, seed: int) -> None:
    logits = np.random.default_rng(seed).integers(0, levels, (3, width)).astype(np.float32)
    top = top_of_rows(torch.from_numpy(logits), k)
    for row in range(3):
        assert top.ids[row].tolist() == np.lexsort((np.arange(width), -logits[row]))[:k].tolist()
        assert top.logits[row].tolist() == logits[row, top.ids[row]].tolist()
