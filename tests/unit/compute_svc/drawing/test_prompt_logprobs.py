"""What rows of logits say of tokens that are known, against a plain reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compute_svc.drawing.prompt_logprobs import prompt_rows

CASES = [(width, k) for width in (2, 19, 4096, 5000) for k in (0, 1, 20)]


def _logits(rows: int, width: int) -> torch.Tensor:
    """Rows of plain numbers, of many equal ones, of a few possible ones, and so on."""
    logits = torch.from_numpy(np.random.default_rng(width).normal(0, 3, (rows, width)).astype(np.float32))
    logits[1::4] = (logits[1::4] / 4).round()
    logits[2::4, 2:] = -torch.inf
    logits[3::4] = 1.0
    return logits


@pytest.mark.parametrize(("width", "k"), CASES)
def test_tokens_have_their_probability_and_rank_and_the_likeliest_come_by_rank(width: int, k: int) -> None:
    logits = _logits(9, width)
    tokens = np.random.default_rng(k).integers(0, width, 9)
    before = logits.clone()
    told = prompt_rows(logits, tokens, k)
    assert torch.equal(logits, before)
    expected = torch.log_softmax(logits.double(), dim=1).float().numpy()
    for row, token in enumerate(tokens.tolist()):
        ranking = np.lexsort((np.arange(width), -logits[row].numpy()))
        assert told.ranks[row] == 1 + ranking.tolist().index(token)
        assert told.top_ids[row].tolist() == ranking[:k].tolist()
        np.testing.assert_array_equal(told.top_logprobs[row], expected[row, ranking[:k]])
        assert told.logprobs[row] == expected[row, token]
    assert told.is_finite.all()


def test_a_row_says_the_same_alone_and_among_many() -> None:
    logits = _logits(400, 5000)
    tokens = np.random.default_rng(0).integers(0, 5000, 400)
    together = prompt_rows(logits, tokens, 5)
    for row in range(0, 400, 7):
        alone = prompt_rows(logits[row : row + 1], tokens[row : row + 1], 5)
        for mine, theirs in zip(alone, together.of(row, row + 1), strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_broken_is_said_and_hurts_no_other(value: float) -> None:
    logits = _logits(3, 300)
    expected = prompt_rows(logits, np.array([1, 2, 3]), 2)
    logits[1, 7] = value
    told = prompt_rows(logits, np.array([1, 2, 3]), 2)
    assert told.is_finite.tolist() == [True, False, True]
    for place in (0, 2):
        assert told.logprobs[place] == expected.logprobs[place] and told.ranks[place] == expected.ranks[place]


@pytest.mark.gpu
def test_a_device_says_what_the_host_says() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    logits = _logits(40, 70_001)
    tokens = np.random.default_rng(0).integers(0, 70_001, 40)
    here, there = prompt_rows(logits, tokens, 20), prompt_rows(logits.cuda(), tokens, 20)
    np.testing.assert_array_equal(there.ranks, here.ranks)
    np.testing.assert_array_equal(there.top_ids, here.top_ids)
    np.testing.assert_allclose(there.logprobs, here.logprobs, rtol=1e-6)
    np.testing.assert_allclose(there.top_logprobs, here.top_logprobs, rtol=1e-6)
