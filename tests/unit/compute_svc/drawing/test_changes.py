"""Changes of logits are those of the contract, on every way that makes them, and counts follow requests through slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.drawing import RequestDraw
from compute_svc.drawing.changes import Penalties, apply_changes, penalise_all, penalise_seen
from compute_svc.drawing.history import IN_ANSWER, IN_PROMPT, History
from tests.fakes.literal_draw import changed_logits
from tests.fakes.rows_to_draw import row_to_draw
from triserve.rpc.sampling import Sampling

CPU = torch.device("cpu")
WIDTH = 40
IDS = st.integers(0, 5)
TOKENS = st.lists(IDS, max_size=24)
PENALISED = Sampling(repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.5, seed=0)


def _draw(sampling: Sampling, num_prompt: int, **stops: Any) -> RequestDraw:
    given_stops = {"min_tokens": 0, "stop_token_ids": (), **stops}
    return RequestDraw(sampling, num_prompt=num_prompt, logits_width=WIDTH, **given_stops)


def _tokens(*parts: list[int]) -> npt.NDArray[np.int64]:
    return np.array([token for part in parts for token in part], dtype=np.int64)


def _logits(rows: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).normal(0, 3, (rows, WIDTH)).astype(np.float32))


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    options: dict[str, Any] = {
        "repetition_penalty": draw(st.sampled_from([1.0, 0.5, 1.3])),
        "presence_penalty": draw(st.sampled_from([0.0, -1.0, 0.3])),
        "frequency_penalty": draw(st.sampled_from([0.0, -1.0, 0.3])),
        "dry_multiplier": draw(st.sampled_from([0.0, 0.8])),
        "dry_allowed_length": draw(st.integers(1, 4)),
        "dry_breaker_ids": tuple(draw(st.lists(IDS, max_size=1))),
        "banned_token_ids": tuple(draw(st.lists(IDS, max_size=2))),
        "allowed_token_ids": tuple(draw(st.lists(IDS, max_size=3))),
        "bad_words": tuple(draw(st.lists(st.lists(IDS, min_size=1, max_size=4).map(tuple), max_size=3))),
    }
    bias = draw(st.dictionaries(IDS, st.sampled_from([-2.0, 0.1]), max_size=3))
    return Sampling(**options, logit_bias_ids=tuple(bias), logit_bias_values=tuple(bias.values()), seed=0)


def test_a_bad_word_is_ended_by_nothing_but_its_beginning_at_the_end() -> None:
    draw = _draw(Sampling(bad_words=((5, 6),), seed=0), 0)
    assert draw.bans(_tokens([1, 5])).tolist() == [6] and draw.bans(_tokens([5, 1])).tolist() == []


def test_dry_looks_back_to_the_last_breaker() -> None:
    draw = _draw(Sampling(dry_multiplier=1.0, dry_base=2.0, dry_allowed_length=2, dry_breaker_ids=(9,), seed=0), 0)
    for tokens, expected in (([1, 2, 3, 9, 1, 2], {3: 1.0}), ([1, 2, 3, 9, 2], {}), ([9, 1, 2, 3, 1, 2], {3: 1.0})):
        found = draw.adjustments(_tokens(tokens))
        assert dict(zip(found.ids.tolist(), found.losses.tolist(), strict=True)) == expected


@given(st.lists(st.tuples(samplings(), TOKENS, TOKENS, st.lists(IDS, max_size=2), st.integers(0, 3)), min_size=1, max_size=3))
def test_changes_are_those_of_the_contract(requests: list[tuple[Sampling, list[int], list[int], list[int], int]]) -> None:
    history, logits = History(WIDTH, CPU), _logits(len(requests))
    draws = [_draw(one, len(prompt), stop_token_ids=stops, min_tokens=least) for one, prompt, _, stops, least in requests]
    # Of some of the answer first: the rest is counted later.
    half = [_tokens(prompt, answer[: len(answer) // 2]) for _, prompt, answer, _, _ in requests]
    apply_changes(logits.clone(), [row_to_draw(*one) for one in zip(draws, half, strict=True)], history)
    changed = logits.clone()
    full = [_tokens(prompt, answer) for _, prompt, answer, _, _ in requests]
    apply_changes(changed, [row_to_draw(*one) for one in zip(draws, full, strict=True)], history)
    for index, (sampling, prompt, answer, stops, least) in enumerate(requests):
        expected = changed_logits(logits[index].tolist(), sampling, prompt, answer, stops, least)
        assert changed[index].tolist() == expected


def test_long_repetitions_count_up_to_64_tokens() -> None:
    sampling = Sampling(dry_multiplier=1e-30, dry_base=2.0, dry_allowed_length=1, seed=0)
    for length in (62, 63, 64, 65, 80):
        tokens = [*range(length), 99, *range(length)]
        ids, losses, _ = RequestDraw(sampling, min_tokens=0, stop_token_ids=(), num_prompt=0, logits_width=200).adjustments(_tokens(tokens))
        assert ids.tolist() == [99] and losses.tolist() == [1e-30 * 2.0 ** (min(length, 64) - 1)]


def test_what_lies_beyond_float32_stays_finite_and_what_has_no_chance_keeps_none() -> None:
    logits = torch.tensor([[3e38, -3e38, -torch.inf, *[0.0] * (WIDTH - 3)]])
    draw = _draw(Sampling(repetition_penalty=0.5, logit_bias_ids=(2,), logit_bias_values=(5.0,), seed=0), 3)
    apply_changes(logits, [row_to_draw(draw, _tokens([0, 1, 2]))], History(WIDTH, CPU))
    assert logits[0, 0] == torch.finfo(torch.float32).max and logits[0, 2] == -torch.inf
    strict = _draw(Sampling(repetition_penalty=10.0, seed=0), 1)
    logits = torch.full((1, WIDTH), -3e38)
    apply_changes(logits, [row_to_draw(strict, _tokens([1]))], History(WIDTH, CPU))
    assert logits[0, 1] == torch.finfo(torch.float32).min


@given(st.integers(0, 2**32))
def test_both_ways_to_penalise_give_the_same(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(0, 3, (3, WIDTH)).astype(np.float32))
    logits[0, 5] = -torch.inf
    counts = torch.from_numpy((random.integers(0, 7, (3, WIDTH)) * (random.random((3, WIDTH)) < 0.4)).astype(np.int32))
    penalties = Penalties(*(torch.from_numpy(random.uniform(0.1, 3, 3)) for _ in range(3)))
    some, every = logits.clone(), logits.clone()
    penalise_seen(some, counts, penalties)
    penalise_all(every, counts, penalties)
    assert torch.equal(some, every)


def _count(history: History, draw: RequestDraw, tokens: list[int]) -> list[int]:
    apply_changes(_logits(), [row_to_draw(draw, _tokens(tokens))], history)
    counts: list[int] = history.counts[history.slot(draw)].tolist()
    return counts


def test_tokens_are_counted_once_however_often_a_request_is_drawn_for() -> None:
    history, draw = History(WIDTH, CPU), _draw(PENALISED, 3)
    assert _count(history, draw, [1, 1, 2]) == [0, IN_PROMPT, IN_PROMPT] + [0] * (WIDTH - 3)
    for _ in range(2):
        assert _count(history, draw, [1, 1, 2, 2, 3, 3])[1:4] == [IN_PROMPT, IN_PROMPT + IN_ANSWER, 2 * IN_ANSWER]


def test_a_slot_is_free_again_and_empty_when_its_request_is_over() -> None:
    history, first, second = History(WIDTH, CPU), _draw(PENALISED, 2), _draw(PENALISED, 1)
    _count(history, first, [4, 5])
    slot = history.slot(first)
    history.forget(first)
    history.forget(first)
    assert history.slot(second) == slot
    assert _count(history, second, [7]) == [0] * 7 + [IN_PROMPT] + [0] * (WIDTH - 8)


def test_counts_survive_when_there_are_more_requests_than_slots() -> None:
    history = History(WIDTH, CPU)
    assert history.counts.numel() == 0
    draws = [_draw(PENALISED, 1) for _ in range(9)]
    for token, draw in enumerate(draws):
        _count(history, draw, [token])
    for token, draw in enumerate(draws):
        assert _count(history, draw, [token, 20])[token : token + 1] == [IN_PROMPT]
    assert len({history.slot(draw) for draw in draws}) == 9 and len(history.counts) == 16


def test_requests_without_penalties_take_no_slot() -> None:
    history = History(WIDTH, CPU)
    apply_changes(_logits(), [row_to_draw(_draw(Sampling(banned_token_ids=(3,), seed=0), 1), _tokens([1]))], history)
    assert history.counts.numel() == 0


def test_tokens_are_never_taken_back() -> None:
    history, draw = History(WIDTH, CPU), _draw(PENALISED, 1)
    _count(history, draw, [1, 2, 3])
    with pytest.raises(AssertionError, match="never taken back"):
        _count(history, draw, [1, 2])
