"""Reported log-probabilities are those of the model."""

from __future__ import annotations

import numpy as np
import pytest

from sampler_svc.errors import Disagreement
from sampler_svc.logprobs import TopToken, token_logprob

IDS = np.array([4, 1, 9], np.uint32)
LOGITS = np.array([2.0, 1.0, 1.5], np.float32)


def test_logprobs_are_logits_less_the_log_of_the_rows_sum() -> None:
    entry = token_logprob(IDS, LOGITS, 2.5, 1, 2, 10)
    assert entry == (1, -1.5, [TopToken(4, -0.5), TopToken(9, -1.0)])


def test_without_top_logprobs_the_drawn_token_alone_is_reported() -> None:
    assert token_logprob(IDS, LOGITS, 2.5, 9, 0, 10) == (9, -1.0, [])


def test_a_vocabulary_smaller_than_top_logprobs_is_reported_whole() -> None:
    assert len(token_logprob(IDS, LOGITS, 2.5, 9, 20, 3).top) == 3


@pytest.mark.parametrize(
    ("token", "num_top", "log_sum_exp", "why"),
    [(3, 0, 2.5, "not among"), (4, 4, 2.5, "top_logprobs is 4"), (4, 1, np.nan, "not finite"), (4, 1, np.inf, "not finite")],
)
def test_a_row_that_cannot_be_reported_is_refused(token: int, num_top: int, log_sum_exp: float, why: str) -> None:
    with pytest.raises(Disagreement) as caught:
        token_logprob(IDS, LOGITS, log_sum_exp, token, num_top, 10)
    assert why in caught.value.detail
