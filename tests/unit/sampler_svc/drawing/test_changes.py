"""Changes to logits, in their order, and which tokens they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_svc.drawing.changes import MAX_DRY_TOKENS, Changes
from tests.fakes.literal_draw import LARGEST, changed_logits, dry_length
from triserve.rpc.sampling import Sampling

INF = math.inf


def changed(
    logits: Sequence[float],
    *,
    prompt: Sequence[int] = (),
    answer: Sequence[int] = (),
    stops: Sequence[int] = (),
    min_tokens: int = 0,
    **fields: Any,
) -> list[float]:
    row = np.array(logits, np.float32)
    changes = Changes(Sampling(temperature=0.0, **fields), min_tokens, stops, prompt, len(row))
    for token in answer:
        changes.count(token)
    return [float(value) for value in changes.apply(row, len(answer))]


def test_repetition_divides_positive_and_multiplies_other_logits_of_prompt_and_answer() -> None:
    assert changed([4.0, 0.0, -4.0, 4.0], prompt=[1, 1, 2], answer=[3], repetition_penalty=2.0) == [4.0, 0.0, -8.0, 2.0]


def test_presence_counts_once_and_frequency_each_time_and_the_prompt_not_at_all() -> None:
    assert changed([0.0] * 4, prompt=[1], answer=[2, 2, 3], presence_penalty=1.0, frequency_penalty=0.25) == [0.0, 0.0, -1.5, -1.25]


def test_bias_comes_after_penalties() -> None:
    assert changed([0.0, 4.0], prompt=[1], repetition_penalty=2.0, logit_bias_ids=(1,), logit_bias_values=(3.0,)) == [0.0, 5.0]


def test_stop_ids_are_banned_before_min_tokens_and_not_from_then_on() -> None:
    for answer, logit in ((), -INF), ((0,), -INF), ((0, 0), 1.0):
        assert changed([1.0] * 3, answer=answer, stops=[1, 2], min_tokens=2) == [1.0, logit, logit]


def test_allowed_ids_alone_may_come_and_banned_ids_may_not() -> None:
    assert changed([1.0] * 4, allowed_token_ids=(1, 3)) == [-INF, 1.0, -INF, 1.0]
    assert changed([1.0] * 4, banned_token_ids=(1, 3)) == [1.0, -INF, 1.0, -INF]
    assert changed([1.0] * 4, allowed_token_ids=(1, 3), banned_token_ids=(3,)) == [-INF, 1.0, -INF, -INF]


def test_a_bad_word_cannot_come_to_its_end_and_its_beginning_can() -> None:
    words = ((0,), (1, 2), (3, 1, 3))
    assert changed([1.0] * 4, bad_words=words) == [-INF, 1.0, 1.0, 1.0]
    assert changed([1.0] * 4, bad_words=words, prompt=[1]) == [-INF, 1.0, -INF, 1.0], "the prompt may begin it"
    assert changed([1.0] * 4, bad_words=words, prompt=[3], answer=[1]) == [-INF, 1.0, -INF, -INF]
    assert changed([1.0] * 4, bad_words=words, prompt=[3, 1], answer=[0]) == [-INF, 1.0, 1.0, 1.0]


def test_a_ban_goes_before_a_bias() -> None:
    assert changed([1.0, 2.0], banned_token_ids=(1,), logit_bias_ids=(1,), logit_bias_values=(100.0,)) == [1.0, -INF]


def test_minus_infinity_stays_and_becomes_no_nan() -> None:
    fields: dict[str, Any] = {"repetition_penalty": 0.5, "presence_penalty": -2.0, "frequency_penalty": -3.0, "dry_multiplier": 1.0}
    bias: dict[str, Any] = {"logit_bias_ids": (1,), "logit_bias_values": (9.0,)}
    assert changed([-INF, -INF], prompt=[1, 1], answer=[1, 1], **fields, **bias) == [-INF, -INF]


def test_no_penalty_makes_a_token_impossible_and_none_makes_a_number_that_is_none() -> None:
    tiny = 1.401298464324817e-45
    assert changed([5.0, -5.0], prompt=[0, 1], repetition_penalty=tiny) == [LARGEST, -5 * tiny]
    huge: dict[str, Any] = {"dry_multiplier": 100.0, "dry_base": 10.0, "dry_allowed_length": 1}
    assert changed([1.0, 1.0], answer=[0] * 70, **huge) == [-LARGEST, 1.0]
    assert changed([-3e38], prompt=[0], repetition_penalty=10.0) == [-LARGEST]


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({}, [1, 1, 1]),
        ({"presence_penalty": 1.0}, []),
        ({"dry_multiplier": 1.0}, [1, 2, 3]),
        ({"dry_multiplier": 1.0}, []),
        ({"bad_words": ((1, 2),)}, [2]),
    ],
    ids=str,
)
def test_a_row_in_which_nothing_changes_is_the_same_array(fields: dict[str, Any], answer: list[int]) -> None:
    row = np.ones(8, np.float32)
    changes = Changes(Sampling(temperature=0.0, **fields), 2, (), [5], 8)
    for token in answer:
        changes.count(token)
    assert changes.apply(row, 0) is row


def test_dry_takes_the_longest_repetition_and_grows_with_it() -> None:
    # "0 1 2" came before 3, "1 2" before 4, and "2" before 5.
    tokens = [0, 1, 2, 3, 9, 1, 2, 4, 2, 5, 0, 1, 2]
    fields: dict[str, Any] = {"prompt": tokens[:6], "answer": tokens[6:], "dry_multiplier": 1.0, "dry_base": 2.0}
    assert changed([0.0] * 10, **fields, dry_allowed_length=1)[3:6] == [-4.0, -2.0, -1.0]
    assert changed([0.0] * 10, **fields, dry_allowed_length=3) == [0.0, 0.0, 0.0, -1.0] + [0.0] * 6


def test_dry_breakers_end_repetitions_and_lose_nothing() -> None:
    tokens = [0, 1, 2, 3, 0, 1, 2]
    fields: dict[str, Any] = {"answer": tokens, "dry_multiplier": 1.0, "dry_base": 2.0, "dry_allowed_length": 1}
    assert changed([0.0] * 4, **fields)[3] == -4.0
    assert changed([0.0] * 4, **fields, dry_breaker_ids=(0,))[3] == -2.0
    assert changed([0.0] * 4, **fields, dry_breaker_ids=(2,))[3] == 0.0
    assert changed([0.0] * 4, **fields, dry_breaker_ids=(3,))[3] == 0.0


def test_dry_counts_no_further_than_its_limit() -> None:
    answer = [*range(100), 100, *range(100)]
    lost = changed([0.0] * 101, answer=answer, dry_multiplier=1.0, dry_base=1.5, dry_allowed_length=MAX_DRY_TOKENS - 3)[100]
    assert lost == -(1.5**3)


# Two or three different tokens make long repetitions that overlap.
REPEATING = st.lists(st.integers(0, 2) | st.integers(0, 7), max_size=90)


@settings(max_examples=150, deadline=None)
@given(REPEATING, st.lists(st.integers(0, 7), max_size=2), st.integers(1, 5))
def test_dry_finds_what_trying_every_place_finds(tokens: list[int], breakers: list[int], allowed: int) -> None:
    cut = len(tokens) // 3
    lost = changed(
        [0.0] * 8,
        prompt=tokens[:cut],
        answer=tokens[cut:],
        dry_multiplier=1.0,
        dry_base=1.25,
        dry_allowed_length=allowed,
        dry_breaker_ids=tuple(breakers),
    )
    lengths = [dry_length(tokens, token, breakers) for token in range(8)]
    assert lost == [float(np.float32(-(1.25 ** (n - allowed)))) if n >= allowed else 0.0 for n in lengths]


def test_long_answers_with_many_different_tokens_are_counted() -> None:
    answer = [*range(500), *range(0, 500, 7)]
    expected = [-float(answer.count(token)) for token in range(600)]
    assert changed([0.0] * 600, answer=answer, frequency_penalty=1.0) == expected


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.floats(width=32, allow_nan=False).filter(lambda value: value < INF), min_size=6, max_size=6),
    prompt=st.lists(st.integers(0, 5), max_size=6),
    answer=st.lists(st.integers(0, 5), max_size=6),
    penalties=st.tuples(st.sampled_from([1.0, 0.5, 1.5, 1e-30]), st.sampled_from([0.0, 0.75]), st.sampled_from([0.0, -0.5])),
    bias=st.sampled_from([-100.0, 0.25]),
)
def test_all_changes_together_are_what_the_specification_says(
    logits: list[float], prompt: list[int], answer: list[int], penalties: tuple[float, float, float], bias: float
) -> None:
    fields: dict[str, Any] = {
        "repetition_penalty": penalties[0],
        "presence_penalty": penalties[1],
        "frequency_penalty": penalties[2],
        "dry_multiplier": 1.5,
        "logit_bias_ids": (2, 4),
        "logit_bias_values": (bias, -bias),
        "banned_token_ids": (0,),
        "bad_words": ((1, 2), (5,)),
    }
    given: dict[str, Any] = {"prompt": prompt, "answer": answer, "stops": (3,), "min_tokens": 2}
    assert changed(logits, **given, **fields) == changed_logits(logits, Sampling(temperature=0.0, **fields), **given)
