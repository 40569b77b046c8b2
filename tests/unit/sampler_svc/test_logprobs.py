"""Reported log-probabilities are those of the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_svc.errors import Disagreement
from sampler_svc.logprobs import PromptPart, RowLogprobs, TokenLogprob, TopToken, token_logprob

ROW = np.log(np.array([0.25, 0.5, 0.125, 0.125], np.float32))


def test_logprobs_are_logits_less_the_log_of_the_rows_sum() -> None:
    token, logprob, top, *_ = token_logprob(ROW + np.float32(7), 2, 2)
    assert (token, [one.token for one in top]) == (2, [1, 0])
    assert [logprob, *(one.logprob for one in top)] == pytest.approx([math.log(0.125), math.log(0.5), math.log(0.25)], rel=1e-6)


def test_without_top_logprobs_the_drawn_token_alone_is_reported() -> None:
    assert token_logprob(ROW, 2, 0).top == []


def test_equals_come_by_rising_id_and_no_more_than_there_are() -> None:
    row = np.array([0.0, 1.0, 0.0, 1.0, -np.inf, 0.0], np.float32)
    assert [[one.token for one in token_logprob(row, 0, num_top).top] for num_top in (3, 4, 20)] == [
        [1, 3, 0],
        [1, 3, 0, 2],
        [1, 3, 0, 2, 5, 4],
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-8, 8).map(lambda n: n / 4) | st.just(-math.inf), min_size=1, max_size=40), st.integers(0, 20))
def test_a_report_is_that_of_a_sorted_row_in_float32(logits: list[float], num_top: int) -> None:
    best = max(range(len(logits)), key=lambda token: (logits[token], -token))
    if logits[best] == -math.inf:
        return
    total = math.log(math.fsum(math.exp(logit) for logit in logits))
    expected = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:num_top]
    token, logprob, top, *_ = token_logprob(np.array(logits, np.float32), best, num_top)
    assert [one.token for one in top] == expected
    for one in [TopToken(token, logprob), *top]:
        assert one.logprob == np.float32(one.logprob)
        assert one.logprob == pytest.approx(logits[one.token] - total, rel=1e-6, abs=1e-7)


def test_a_rows_logprobs_are_dealt_out_to_its_tokens() -> None:
    row = RowLogprobs([-1.0, -2.0], [5, 6, 7, 8], [-0.5, -0.75, -0.25, -math.inf])
    assert row.entries([5, 9], 2) == [
        TokenLogprob(5, -1.0, [TopToken(5, -0.5), TopToken(6, -0.75)]),
        TokenLogprob(9, -2.0, [TopToken(7, -0.25), TopToken(8, -math.inf)]),
    ]
    assert RowLogprobs([-1.0], [], []).entries([4], 0) == [TokenLogprob(4, -1.0, [])]


def test_named_ids_are_dealt_out_in_the_order_of_the_request() -> None:
    row = RowLogprobs([-1.0, -2.0], [], [], [-3.0, -math.inf, -5.0, -6.0])
    assert [entry.named for entry in row.entries([5, 9], 0, [4, 3])] == [
        (TopToken(4, -3.0), TopToken(3, -math.inf)),
        (TopToken(4, -5.0), TopToken(3, -6.0)),
    ]
    assert token_logprob(ROW, 2, 1, [1, 0]).named == tuple(token_logprob(ROW, 2, 2).top)


def test_a_part_of_a_prompt_is_dealt_out_to_its_tokens_with_their_ranks() -> None:
    part = PromptPart(1, 1, [-1.0, -math.inf], [1, 9], [5, 7], [-1.0, -0.25])
    assert part.entries([5, 9], 1) == [
        TokenLogprob(5, -1.0, [TopToken(5, -1.0)], rank=1),
        TokenLogprob(9, -math.inf, [TopToken(7, -0.25)], rank=9),
    ]


@pytest.mark.parametrize(
    "part",
    [
        PromptPart(1, 1, [-1.0, -1.0], [1, 1], [5, 5], [-1.0, -1.0]),
        PromptPart(1, 1, [-1.0], [1], [5, 6], [-1.0, -1.0]),
        PromptPart(1, 1, [math.nan], [1], [5], [-1.0]),
        PromptPart(1, 1, [-1.0], [1], [5], [math.inf]),
        PromptPart(1, 1, [-1.0], [0], [5], [-1.0]),
    ],
    ids=["more than the prompt has", "too many likely ones", "NaN", "infinite", "no rank"],
)
def test_a_part_of_a_prompt_that_does_not_fit_is_refused(part: PromptPart) -> None:
    with pytest.raises(Disagreement):
        part.entries([5], 1)


@pytest.mark.parametrize(
    ("row", "num_top", "why"),
    [
        (RowLogprobs([-1.0], [5], [-1.0]), 2, "each is to have 2"),
        (RowLogprobs([-1.0], [5], [-1.0]), 0, "each is to have 0"),
        (RowLogprobs([math.nan], [], []), 0, "NaN or infinite"),
        (RowLogprobs([-math.inf], [], []), 0, "NaN or infinite"),
        (RowLogprobs([-1.0], [5], [math.nan]), 1, "NaN or infinite"),
        (RowLogprobs([-1.0], [5], [math.inf]), 1, "NaN or infinite"),
    ],
)
def test_a_row_that_cannot_be_reported_is_refused(row: RowLogprobs, num_top: int, why: str) -> None:
    with pytest.raises(Disagreement) as caught:
        row.entries([5], num_top)
    assert why in caught.value.detail
