"""What a step's rows draw: each its own, whatever lies beside it, and with at most one wait."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from compute_svc.drawing import Drawer, RequestDraw, RowStatus, RowToDraw
from compute_svc.drawing.history import History
from compute_svc.drawing.looks import Step
from tests.fakes.rows_to_draw import DrawnRows, draw_rows, row_to_draw
from tests.fakes.wait_detector import CountedReads, no_waiting
from triserve.rpc.sampling import Sampling

CPU = torch.device("cpu")
META = torch.device("meta")
WIDTH = 5000
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 0.7},
    "min-p": {"min_p": 0.05},
    "top-n-sigma": {"top_n_sigma": 1.5},
    "top-k": {"top_k": 20},
    "top-p": {"top_p": 0.9},
    "typical": {"typical_p": 0.9},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.01},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.1},
    "greedy-penalties": {"temperature": 0.0, "repetition_penalty": 1.2},
    "dry": {"dry_multiplier": 0.8},
    "bans": {"allowed_token_ids": tuple(range(100)), "banned_token_ids": (3,), "bad_words": ((1, 2), (4,))},
    "bias": {"temperature": 0.0, "logit_bias_ids": (5,), "logit_bias_values": (50.0,)},
    "logprobs": {"top_logprobs": 3},
    "named": {"top_logprobs": 0, "logprob_token_ids": (7, 3, 250)},
    "everything": {
        "top_k": 40,
        "typical_p": 0.95,
        "top_p": 0.95,
        "min_p": 0.01,
        "top_n_sigma": 3.0,
        "xtc_probability": 0.5,
        "repetition_penalty": 1.1,
        "dry_multiplier": 0.5,
        "top_logprobs": 20,
    },
}


def _draw(seed: int = 0, *, num_prompt: int = 0, width: int = WIDTH, **options: Any) -> RequestDraw:
    stops = {"min_tokens": options.pop("min_tokens", 0), "stop_token_ids": options.pop("stops", ())}
    return RequestDraw(Sampling(seed=seed, **options), num_prompt=num_prompt, logits_width=width, **stops)


def _tokens(*tokens: int) -> npt.NDArray[np.int64]:
    return np.array(tokens, dtype=np.int64)


def _logits(rows: int, width: int = WIDTH, scale: float = 3.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(0, scale, (rows, width)).astype(np.float32))


def _mixed(seed: int = 0) -> list[RowToDraw]:
    return [row_to_draw(_draw(seed + index, num_prompt=2, **one), _tokens(1, 2, 1, 2, 1)) for index, one in enumerate(OPTIONS.values())]


def test_a_row_draws_the_same_alone_and_beside_others_in_any_order() -> None:
    rows = _mixed()
    logits = _logits(len(rows))
    together = draw_rows(Drawer(WIDTH, CPU), logits, rows)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = draw_rows(Drawer(WIDTH, CPU), logits[order], [rows[one] for one in order])
    assert [shuffled.tokens[place] for place in np.argsort(order)] == together.tokens
    for index, row in enumerate(rows):
        alone = draw_rows(Drawer(WIDTH, CPU), logits[index : index + 1], [row])
        assert alone.tokens == together.tokens[index : index + 1]
        _assert_same_logprobs(alone, 0, together, index)


def _assert_same_logprobs(one: DrawnRows, at: int, other: DrawnRows, there: int) -> None:
    mine, theirs = one.logprobs[at], other.logprobs[there]
    assert (mine is None) == (theirs is None)
    if mine is not None and theirs is not None:
        assert mine.logprob == theirs.logprob and mine.top_ids.tolist() == theirs.top_ids.tolist()
        assert mine.top_logprobs.tolist() == theirs.top_logprobs.tolist() and mine.named == theirs.named


def test_logits_stay_as_they_are() -> None:
    rows = _mixed()
    logits = _logits(len(rows))
    before = logits.clone()
    draw_rows(Drawer(WIDTH, CPU), logits, rows)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_row_is_said_and_hurts_no_other(options: dict[str, Any], value: float) -> None:
    logits = _logits(3)
    rows = [row_to_draw(_draw(seed, num_prompt=1, **options), _tokens(4, 5)) for seed in range(3)]
    expected = draw_rows(Drawer(WIDTH, CPU), logits, rows)
    broken = logits.clone()
    broken[1, 77] = value
    drawn = draw_rows(Drawer(WIDTH, CPU), broken, rows)
    assert drawn.status == [RowStatus.DRAWN, RowStatus.BROKEN, RowStatus.DRAWN]
    assert drawn.logprobs[1] is None
    assert [drawn.tokens[0], drawn.tokens[2]] == [expected.tokens[0], expected.tokens[2]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_any_chance_is_broken(temperature: float) -> None:
    logits = torch.full((1, WIDTH), -torch.inf)
    drawn = draw_rows(Drawer(WIDTH, CPU), logits, [row_to_draw(_draw(temperature=temperature), _tokens())])
    assert drawn.status == [RowStatus.BROKEN]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bans_of_every_id_are_said(temperature: float) -> None:
    draw = _draw(temperature=temperature, allowed_token_ids=(7, 8), stops=(7,), banned_token_ids=(8,), min_tokens=2, top_logprobs=2)
    drawer, logits = Drawer(WIDTH, CPU), _logits(1)
    for tokens in (_tokens(), _tokens(3)):
        drawn = draw_rows(drawer, logits, [row_to_draw(draw, tokens)])
        assert drawn.status == [RowStatus.IMPOSSIBLE] and drawn.logprobs == [None]
    drawn = draw_rows(drawer, logits, [row_to_draw(draw, _tokens(3, 3))])
    assert drawn.status == [RowStatus.DRAWN] and drawn.tokens == [7]


@pytest.mark.parametrize("width", [2, 19, 4096, 5000])
def test_log_probabilities_are_the_models_whatever_is_changed(width: int) -> None:
    logits = _logits(2, width)
    logits[1, ::2] = logits[1, 1]
    draws = [_draw(seed, width=width, temperature=0.5, banned_token_ids=(0,), top_logprobs=count) for seed, count in ((0, 20), (1, 0))]
    drawn = draw_rows(Drawer(width, CPU), logits, [row_to_draw(draw, _tokens()) for draw in draws])
    expected = torch.log_softmax(logits.double(), dim=1)
    for index, row in enumerate(drawn.logprobs):
        assert row is not None and row.logprob == np.float32(expected[index, drawn.tokens[index]])
    first, second = drawn.logprobs
    assert first is not None and second is not None and second.top_ids.size == 0
    ranked = np.lexsort((np.arange(width), -logits[0].numpy()))[:20]
    assert first.top_ids.tolist() == ranked.tolist() and first.top_ids.dtype == np.uint32
    np.testing.assert_array_equal(first.top_logprobs, expected[0, ranked].numpy().astype(np.float32))


def test_named_ids_are_reported_in_the_order_of_the_request_beside_rows_that_name_others_or_none() -> None:
    logits = _logits(4)
    named = [(7, 0, 4000), (), (5,), None]
    draws = [_draw(seed, top_logprobs=seed, logprob_token_ids=ids) if ids is not None else _draw(seed) for seed, ids in enumerate(named)]
    drawn = draw_rows(Drawer(WIDTH, CPU), logits, [row_to_draw(draw, _tokens()) for draw in draws])
    expected = torch.log_softmax(logits.double(), dim=1).float()
    for index, (row, ids) in enumerate(zip(drawn.logprobs, named, strict=True)):
        assert (row is None) == (ids is None)
        if row is not None and ids is not None:
            assert row.named == tuple(expected[index, list(ids)].tolist())


def test_equal_log_probabilities_are_reported_by_rising_id() -> None:
    logits = torch.full((1, WIDTH), -torch.inf)
    logits[0, [9, 4000, 300]] = 1.0
    drawn = draw_rows(Drawer(WIDTH, CPU), logits, [row_to_draw(_draw(temperature=0.0, top_logprobs=5), _tokens())])
    assert drawn.tokens == [9] and drawn.logprobs[0] is not None
    assert drawn.logprobs[0].top_ids.tolist() == [9, 300, 4000, 0, 1]
    assert drawn.logprobs[0].top_logprobs[3:].tolist() == [-np.inf, -np.inf]


def test_what_the_first_look_cannot_decide_is_looked_at_again() -> None:
    """Equal logits have no head, and a top_k beyond the head needs the whole ranking where top_n_sigma comes before it."""
    logits = torch.zeros((2, 20_000))
    options: list[dict[str, Any]] = [{"typical_p": 0.5, "top_p": 0.5}, {"top_n_sigma": 1.0, "top_k": 3000}]
    rows = [row_to_draw(_draw(seed, width=20_000, **one), _tokens()) for seed, one in enumerate(options)]
    step = Step(logits, rows, History(20_000, CPU))
    step.take(step.look())
    assert step.open == [0, 1]
    drawn = draw_rows(Drawer(20_000, CPU), logits, rows)
    assert drawn.status == [RowStatus.DRAWN] * 2 and drawn.tokens[0] < 10_000 and drawn.tokens[1] < 3000


def test_nothing_is_drawn_of_no_rows() -> None:
    assert draw_rows(Drawer(WIDTH, CPU), torch.empty((0, WIDTH)), []) == DrawnRows([], [], [])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_looking_waits_for_no_device(options: dict[str, Any]) -> None:
    rows = [row_to_draw(_draw(seed, num_prompt=1, **options), _tokens(1, 2, 1)) for seed in range(3)]
    step = Step(torch.empty((3, WIDTH), device=META), rows, History(WIDTH, META))
    with no_waiting():
        found = step.look()
    assert found.tokens.shape == (1, 3)


def test_a_mixed_step_on_a_device_is_read_once_a_look() -> None:
    rows = _mixed()
    step = Step(torch.empty((len(rows), WIDTH), device=META), rows, History(WIDTH, META))
    with CountedReads() as reads:
        step.take(step.look())
    assert reads.count == 1


def test_greedy_rows_on_a_device_are_read_once() -> None:
    with CountedReads() as reads:
        drawn = draw_rows(Drawer(WIDTH, META), torch.empty((3, WIDTH), device=META), [row_to_draw(_draw(temperature=0.0), _tokens())] * 3)
    assert reads.count == 1 and drawn.tokens == [0, 2, 4]


@pytest.mark.gpu
def test_cuda_draws_what_the_cpu_does() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    rows = [row for seed in range(20) for row in _mixed(100 * seed)]
    for scale in (0.5, 2.0, 5.0):
        logits = _logits(len(rows), scale=scale)
        expected = draw_rows(Drawer(WIDTH, CPU), logits, rows)
        drawn = draw_rows(Drawer(WIDTH, torch.device("cuda")), logits.cuda(), rows)
        assert drawn.tokens == expected.tokens and drawn.status == expected.status
