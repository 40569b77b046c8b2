"""A draw is what the contract specifies, for every parameter, with ties and with logits of -inf."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_svc.drawing.changes import Changes
from sampler_svc.drawing.draw import draw_token
from tests.fakes.literal_draw import left_by_filters, literal_draw
from triserve.rpc.sampling import Sampling

WIDTH = 24
LOG = np.log


def f32(*values: float) -> list[float]:
    """As the contract's messages carry them."""
    return [float(np.float32(value)) for value in values]


def draw(logits: Any, sampling: Sampling, prompt: Any = (), answer: Any = (), position: int | None = None, **stops: Any) -> int | None:
    """The token that comes next after an answer."""
    row = np.array(logits, np.float32)
    changes = Changes(sampling, stops.get("min_tokens", 0), stops.get("stops", ()), prompt, len(row))
    for token in answer:
        changes.count(token)
    return draw_token(row, sampling, changes, len(answer) if position is None else position)


def drawable(logits: Any, draws: int = 100, **fields: Any) -> set[int | None]:
    """Ids that come up over many positions."""
    return {draw(logits, Sampling(seed=1, **fields), position=position) for position in range(draws)}


# A coarse grid makes ties, also with penalties; the others make awkward roundings.
LOGITS = st.one_of(st.integers(-6, 6).map(lambda n: n / 2), st.just(-math.inf), st.floats(-30, 30, width=32))
TOKENS = st.integers(0, WIDTH - 1)
SOME = st.lists(TOKENS, max_size=4).map(tuple)


def rarely(default: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Mostly the default, so that not every filter is on in every row."""
    return st.sampled_from([default, default, default, *others])


def samplings(**fixed: Any) -> st.SearchStrategy[Sampling]:
    """Any parameters."""
    bias = st.dictionaries(TOKENS, st.sampled_from([-100.0, -1.0, 0.5, 5.0]), max_size=3)
    fields: dict[str, Any] = {
        "temperature": st.sampled_from([0.0, 1.0, *f32(0.25, 0.7, 1, 1.7, 100)]),
        "top_k": st.one_of(st.none(), st.none(), st.integers(1, WIDTH + 2)),
        "top_p": rarely(1.0, *f32(0.1, 0.55, 0.9, 0.97)),
        "min_p": rarely(0.0, *f32(0.04, 0.45, 1)),
        "typical_p": rarely(1.0, *f32(0.2, 0.61, 0.93)),
        "top_n_sigma": rarely(None, *f32(0.3, 1.1, 2.7)),
        "xtc_probability": rarely(0.0, 0.5, 1.0),
        "xtc_threshold": st.sampled_from([0.1, *f32(0.02, 0.33)]),
        "repetition_penalty": rarely(1.0, *f32(0.5, 1.3)),
        "presence_penalty": rarely(0.0, 1.5, -2.0),
        "frequency_penalty": rarely(0.0, 0.5, -0.25),
        "dry_multiplier": rarely(0.0, *f32(0.8, 3)),
        "dry_base": st.sampled_from([1.75, 2.0, 10.0]),
        "dry_allowed_length": st.integers(1, 3),
        "dry_breaker_ids": SOME,
        "allowed_token_ids": rarely((), tuple(range(0, WIDTH, 2)), (1, 2, 3)),
        "banned_token_ids": SOME,
        "bad_words": st.lists(st.lists(TOKENS, min_size=1, max_size=3).map(tuple), max_size=2).map(tuple),
        "seed": st.integers(0, 2**64 - 1),
    } | {name: st.just(value) for name, value in fixed.items()}
    return st.builds(
        lambda bias, **fields: Sampling(logit_bias_ids=tuple(bias), logit_bias_values=tuple(bias.values()), **fields),
        bias,
        **fields,
    )


ROWS = st.lists(LOGITS, min_size=WIDTH, max_size=WIDTH)
# Few different tokens, so that there are repetitions.
HISTORY = st.lists(st.one_of(st.integers(0, 2), TOKENS), max_size=14)


@settings(max_examples=200, deadline=None)
@given(ROWS, samplings(), HISTORY, HISTORY, SOME, st.sampled_from([0, 0, 4, 20]))
def test_a_draw_is_what_the_specification_says(
    row: list[float], sampling: Sampling, prompt: list[int], answer: list[int], stops: tuple[int, ...], min_tokens: int
) -> None:
    given: dict[str, Any] = {"prompt": prompt, "answer": answer, "stops": stops, "min_tokens": min_tokens}
    assert draw(row, sampling, **given) == literal_draw(row, sampling, len(answer), **given)


ONE_AT_A_TIME: list[dict[str, Any]] = [
    {"top_k": st.integers(2, WIDTH)},
    {"top_p": st.floats(2**-7, 1, width=32)},
    {"min_p": st.floats(0, 1, width=32)},
    {"typical_p": st.floats(2**-7, 1, width=32)},
    {"top_n_sigma": st.floats(2**-7, 4, width=32)},
    {"xtc_probability": st.just(1.0), "xtc_threshold": st.floats(2**-7, 0.375, width=32)},
]


@pytest.mark.parametrize("filters", ONE_AT_A_TIME, ids=lambda filters: next(iter(filters)))
@settings(max_examples=30, deadline=None)
@given(data=st.data(), row=ROWS, temperature=st.sampled_from([0.8, 1.0, 40.0]), seed=st.integers(0, 2**64 - 1))
def test_each_filter_alone_leaves_what_the_specification_says(
    filters: dict[str, Any], data: st.DataObject, row: list[float], temperature: float, seed: int
) -> None:
    sampling = Sampling(temperature=temperature, seed=seed, **{name: data.draw(value, name) for name, value in filters.items()})
    nothing: dict[str, Any] = {"prompt": (), "answer": (), "stops": (), "min_tokens": 0}
    for position in (0, 1, 2**32 - 1):
        assert draw(row, sampling, position=position) == literal_draw(row, sampling, position, **nothing)


FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"typical_p": 0.7},
    {"top_n_sigma": 1.3},
    {"xtc_probability": 0.5, "xtc_threshold": 0.1},
    {"top_k": 9, "typical_p": 0.97, "top_p": 0.95, "min_p": 0.03, "xtc_probability": 1.0},
]


@pytest.mark.parametrize("fields", FILTERS, ids=str)
def test_draws_follow_the_softmax_of_what_the_filters_leave(fields: dict[str, Any]) -> None:
    """Chi-square; the ids share blocks, calls and lanes, and lie in others."""
    ids = [0, 1, 4, 255, 256, 512, 516, 4095, 4096, 4352, 4608, 4999]
    row = np.full(5000, -np.inf, np.float32)
    row[ids] = np.linspace(1.5, -1.5, 12)[np.random.default_rng(2).permutation(12)]
    draws, sampling = 400, Sampling(seed=99, **fields)
    drawn = [draw(row, sampling, position=position) for position in range(draws)]
    expected = dict.fromkeys(ids, 0.0)
    for position in range(draws):  # XTC goes by the position's own u
        left = [ids[place] for place in left_by_filters(row[ids].tolist(), sampling, position)]
        weights = [math.exp(row[token] / sampling.temperature) for token in left]
        for token, weight in zip(left, weights, strict=True):
            expected[token] += weight / sum(weights)
    possible = [token for token in ids if expected[token] > 0]
    assert set(drawn) <= set(possible)
    chi_square = sum((drawn.count(token) - expected[token]) ** 2 / expected[token] for token in possible)
    assert chi_square < len(possible) - 1 + 3.3 * math.sqrt(2 * len(possible)) + 5


@pytest.mark.parametrize(
    "fields", [*FILTERS, {"top_k": 700}, {"top_p": 0.9999}, {"typical_p": 0.999}, {"top_n_sigma": 3.0}, {"temperature": 30.0}], ids=str
)
def test_wide_rows_with_many_equals_are_drawn_as_the_specification_says(fields: dict[str, Any]) -> None:
    row = np.round(np.random.default_rng(7).normal(0, 3, 5000), 1).astype(np.float32)
    sampling = Sampling(seed=2**63 + 5, **fields)
    assert draw(row, sampling, position=3) == literal_draw(row.tolist(), sampling, 3, prompt=(), answer=(), stops=(), min_tokens=0)


def test_temperature_zero_takes_the_likeliest_and_among_equals_the_lowest_id() -> None:
    assert drawable([0.0, 4.0, 4.0, 1.0], temperature=0.0, draws=20) == {1}
    assert draw([0.0, 4.0, 4.0], Sampling(temperature=0.0, top_k=3, top_p=0.5, xtc_probability=1.0)) == 1, "and nothing else applies"


def test_top_k_of_one_is_greedy_at_any_temperature() -> None:
    assert drawable([1.0, 1.1, 1.1], top_k=1, temperature=50.0, draws=20) == {1}


def test_zero_and_minus_zero_are_equals() -> None:
    assert drawable([-0.0, 0.0, 0.0], top_k=2) == {0, 1}
    assert draw([-1.0, -0.0, 0.0], Sampling(temperature=0.0)) == 1


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.5}, {0, 1, 2}),
        ({"typical_p": 0.5}, {0, 1, 2}),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.1}, {3}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_filters_cut_among_equals_by_id(fields: dict[str, Any], left: set[int]) -> None:
    logits = [0.0, 1.0, 0.0, 0.0, 0.0] if "top_k" in fields else [1.0, 1.0, 1.0, 1.0, -40.0]
    if "top_p" in fields or "typical_p" in fields:
        logits, left = [1.0] * 5, {0, 1, 2}
    assert drawable(logits, **fields) == left


def test_top_p_keeps_the_token_that_reaches_p_and_none_after_it() -> None:
    logits = LOG([0.5, 0.3, 0.15, 0.05])
    for top_p, left in ((0.45, {0}), (0.6, {0, 1}), (0.79, {0, 1}), (0.81, {0, 1, 2}), (1e-30, {0})):
        assert drawable(logits, top_p=top_p) == left


def test_top_p_is_of_what_top_k_left() -> None:
    # Of all: 0.4 + 0.3 < 0.75, so three would stay. Of the two that top-k leaves, the first has 0.57 and both are needed.
    logits = LOG([0.4, 0.3, 0.2, 0.1])
    assert drawable(logits, top_p=0.75) == {0, 1, 2}
    assert drawable(logits, top_p=0.75, top_k=2) == {0, 1}
    assert drawable(logits, top_p=0.55, top_k=2) == {0}


def test_min_p_is_relative_to_the_likeliest_that_is_left_at_the_temperature() -> None:
    logits = LOG([0.5, 0.26, 0.24])
    assert drawable(logits, min_p=0.5) == {0, 1}
    assert drawable(logits, min_p=1.0) == {0}
    assert drawable(LOG([0.5, 0.25]), min_p=0.6, temperature=2.0) == {0, 1}
    # 0.3 is further from what is expected than 0.1, so the likeliest goes.
    assert drawable(LOG([0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]), typical_p=0.15, min_p=0.9) == {1, 2}


def test_top_n_sigma_leaves_impossible_tokens_out_of_the_deviation() -> None:
    row = [2.0, 0.0, -math.inf, -math.inf]  # the deviation is 1
    assert drawable(row, top_n_sigma=1.9) == {0}
    assert drawable(row, top_n_sigma=2.1) == {0, 1}


def test_xtc_drops_the_likeliest_but_for_the_last_above_the_threshold() -> None:
    logits = LOG([0.4, 0.3, 0.2, 0.1])
    assert drawable(logits, xtc_probability=1.0, xtc_threshold=0.15) == {2, 3}
    assert drawable(logits, xtc_probability=1.0, xtc_threshold=0.35) == {0, 1, 2, 3}, "one alone stays"
    assert drawable(logits, xtc_probability=1.0, xtc_threshold=0.5) == {0, 1, 2, 3}
    assert drawable(logits, xtc_probability=0.5, xtc_threshold=0.15) == {0, 1, 2, 3}, "not at every position"


def test_logits_of_minus_infinity_are_never_drawn_and_a_row_of_them_draws_nothing() -> None:
    for fields in [*FILTERS, {"temperature": 0.0}, {"temperature": 100.0}]:
        sampling = Sampling(**({"seed": 3} | fields))
        assert {draw([0.0, -math.inf, -1.0], sampling, position=position) for position in range(20)} <= {0, 2}
        assert draw([-math.inf] * 3, sampling) is None


def test_a_row_with_nothing_that_may_come_draws_nothing() -> None:
    assert draw([1.0, 2.0], Sampling(seed=1, banned_token_ids=(0, 1))) is None
    assert draw([1.0, 2.0], Sampling(seed=1, allowed_token_ids=(0,), banned_token_ids=(0,))) is None
    assert draw([-math.inf, 2.0], Sampling(temperature=0.0, allowed_token_ids=(0,))) is None
    assert draw([1.0, 2.0], Sampling(seed=1), stops=(0, 1), min_tokens=1) is None


def test_extreme_temperatures_give_tokens_and_no_warning() -> None:
    tiny = 1.401298464324817e-45
    assert drawable([1.0, 2.0, -3.0], temperature=tiny, draws=20) == {1}
    assert drawable([1.0, 2.0, -3.0], temperature=tiny, top_p=0.5, typical_p=0.5, min_p=0.5, draws=20) == {1}
    assert drawable([3e38, -3e38, 0.0], temperature=tiny, top_k=2, top_n_sigma=9.0, draws=20) == {0}
    assert drawable([1.0, 1.0, -3.0], temperature=tiny, draws=20) == {0}, "noise cannot be told beside such scores, and the lowest id is"
    assert drawable([1.0, 2.0, -3.0], temperature=100.0) == {0, 1, 2}


def test_parameters_that_change_nothing_give_the_plain_draw() -> None:
    row = np.random.default_rng(1).normal(0, 3, 500)
    idle = Sampling(
        temperature=1.0,
        top_k=500,
        top_n_sigma=100.0,
        xtc_probability=1.0,
        xtc_threshold=1.0,
        dry_multiplier=0.0,
        dry_breaker_ids=(1, 2),
        logit_bias_ids=(3,),
        logit_bias_values=(0.0,),
        allowed_token_ids=tuple(range(500)),
        bad_words=((7, 8, 9),),
        seed=5,
    )
    for position in range(30):
        plain = draw(row, Sampling(seed=5), position=position)
        assert draw(row, idle, prompt=(1, 2), answer=(3,), position=position) == plain


def test_a_seed_and_a_position_are_honoured_whole() -> None:
    """PPL.LLM drew from the C library's generator, whatever the seed."""

    def tokens(seed: int, start: int = 0) -> list[int | None]:
        return [draw([0.0] * 1000, Sampling(seed=seed), position=start + step) for step in range(5)]

    assert tokens(7) == tokens(7)
    assert len({tuple(tokens(*stream)) for stream in ((7,), (8,), (7 + 2**32,), (2**63 + 7,), (7, 2**31))}) == 5


def test_a_fixed_seed_gives_the_same_tokens_for_ever() -> None:
    row = np.arange(8) / 4.0
    assert [draw(row, Sampling(seed=1234567890123456789), position=position) for position in range(12)] == [
        1,
        6,
        1,
        7,
        4,
        6,
        4,
        7,
        4,
        2,
        5,
        4,
    ]


def test_a_draw_leaves_the_row_as_it_was() -> None:
    row = np.zeros(8, np.float32)
    row.flags.writeable = False
    sampling = Sampling(seed=1, repetition_penalty=2.0, logit_bias_ids=(1,), logit_bias_values=(5.0,), banned_token_ids=(2,))
    draw_token(row, sampling, Changes(sampling, 0, (), [0], 8), 0)
    assert not row.any()
