"""Log-probabilities of the model's own distribution, before penalties and temperature."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampler_svc.errors import Disagreement
from sampler_svc.sampler import likeliest


class TopToken(NamedTuple):
    """One of the likeliest tokens."""

    token: int
    logprob: float


class TokenLogprob(NamedTuple):
    """One token of the answer and what else was likely in its place."""

    token: int
    logprob: float
    top: list[TopToken]  # falling


def token_logprob(
    ids: NDArray[np.uint32], logits: NDArray[np.float32], log_sum_exp: float, token: int, num_top: int, logits_width: int
) -> TokenLogprob:
    """The log-probabilities to report with a token: logit - log_sum_exp.

    Args:
        ids: [candidates] of the token's row.
        logits: [candidates], raw.
        log_sum_exp: of all logits of the row.
        token: the drawn one.
        num_top: how many of the likeliest to report.
        logits_width: number of logits of the row.

    Raises:
        Disagreement: the token or enough others are not among the candidates, or a number is not finite.
    """
    if len(ids) < min(num_top, logits_width):
        raise Disagreement(f"row has {len(ids)} candidates, top_logprobs is {num_top}")
    place = np.flatnonzero(ids == token)
    if len(place) == 0:
        raise Disagreement(f"drawn token {token} is not among {len(ids)} candidates")
    logprobs = logits.astype(np.float64) - log_sum_exp
    if not np.isfinite(logprobs[place[0]]) or np.isnan(logprobs).any():
        raise Disagreement("a log-probability is not finite")
    top = likeliest(ids, logprobs, num_top)
    return TokenLogprob(
        token, float(logprobs[place[0]]), [TopToken(*pair) for pair in zip(ids[top].tolist(), logprobs[top].tolist(), strict=True)]
    )
