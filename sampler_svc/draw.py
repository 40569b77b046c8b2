"""The draw of one row: the reference for `SamplingParams` in common.proto, step by step over the whole row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampler_svc.changes import Changes
from sampler_svc.noise import block_minima, block_of, exponentials, lane_of, xtc_uniform
from triserve.rpc.sampling import Sampling


class _Left(NamedTuple):
    """Ids that can be drawn still. By rank, where a filter asks for it: by falling logit, then by rising id."""

    ids: NDArray[np.intp]  # [left]
    logits: NDArray[np.float64]  # [left]
    scores: NDArray[np.float64]  # [left]

    def of(self, kept: NDArray[np.bool_] | NDArray[np.intp] | slice) -> _Left:
        return _Left(self.ids[kept], self.logits[kept], self.scores[kept])

    def weights(self) -> NDArray[np.float64]:
        """Probabilities times the same number: [left]."""
        weights: NDArray[np.float64] = np.exp(self.scores - self.scores.max())
        return weights


def draw_token(logits: NDArray[np.float32], sampling: Sampling, changes: Changes, position: int) -> int | None:
    """Draws the next token.

    Args:
        logits: [width], as the model gave them, without NaN and +inf; not modified.
        sampling: checked.
        changes: of the request, with all tokens before the position.
        position: index of the token in the answer.

    Returns:
        None = nothing can be drawn.
    """
    logits = changes.apply(logits, position)
    best = int(logits.argmax())  # the first of equals
    if logits[best] == -np.inf:
        return None
    if sampling.greedy:
        return best
    left = _filter(logits, sampling, position)
    assert sampling.seed is not None, "checked"
    return _draw(left, sampling.seed, position)


def _filter(logits: NDArray[np.float32], sampling: Sampling, position: int) -> _Left:
    ids = np.flatnonzero(logits > -np.inf)
    of_ids = logits[ids].astype(np.float64)
    left = _Left(ids, of_ids, of_ids / sampling.temperature)
    if sampling.top_n_sigma is not None:
        left = left.of(left.logits >= left.logits.max() - sampling.top_n_sigma * left.logits.std())
    xtc = sampling.xtc_probability > 0 and xtc_uniform(sampling.seed or 0, position) < sampling.xtc_probability
    if sampling.top_k is not None or sampling.typical_p < 1 or sampling.top_p < 1 or xtc:
        left = left.of(np.argsort(-left.logits, kind="stable"))
    if sampling.top_k is not None:
        left = left.of(slice(sampling.top_k))
    if sampling.typical_p < 1:
        left = _keep_typical(left, sampling.typical_p)
    if sampling.top_p < 1:
        left = left.of(_reaching(left.weights(), sampling.top_p))
    if sampling.min_p > 0:
        left = left.of(left.weights() >= sampling.min_p)
    if xtc:
        weights = left.weights()
        above = int(np.count_nonzero(weights >= sampling.xtc_threshold * weights.sum()))
        left = left.of(slice(max(0, above - 1), None))
    return left


def _keep_typical(left: _Left, typical_p: float) -> _Left:
    weights = left.weights()
    # With s = score - best, -log p is log(sum) - s, and the entropy is its mean: the logarithm is in both.
    below = left.scores - left.scores.max()
    surprise = np.abs((weights * below).sum() / weights.sum() - below)
    order = np.argsort(surprise, kind="stable")
    kept = np.zeros(len(order), np.bool_)
    kept[order[_reaching(weights[order], typical_p)]] = True
    return left.of(kept)


def _reaching(weights: NDArray[np.float64], share: float) -> slice:
    """The shortest prefix that has this share of all weights."""
    sums = np.cumsum(weights)
    return slice(int(np.searchsorted(sums, share * sums[-1])) + 1)


def _draw(left: _Left, seed: int, position: int) -> int:
    """The id of the largest score - log(e), the lowest of equals."""
    ids = left.ids.astype(np.uint64)
    minima = block_minima(seed, position, int(ids.max()) + 1)
    # No e is below its block's smallest, so no key is above this; and it is the key of the id that has the smallest.
    bounds = left.scores - np.log(minima.exponential)[block_of(ids)]
    known = bounds[minima.lane[block_of(ids)] == lane_of(ids)]
    if len(known):
        contenders = bounds >= known.max()
        ids, left = ids[contenders], left.of(contenders)
    keys = left.scores - np.log(exponentials(seed, position, ids, minima))
    return int(left.ids[keys == keys.max()].min())
