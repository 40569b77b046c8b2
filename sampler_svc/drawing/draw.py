"""The draw of one row: the reference for `SamplingParams` in common.proto, step by step over the whole row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampler_svc.drawing.changes import Changes
from sampler_svc.drawing.noise import LANE_STRIDE, LANES, block_minima, exponentials, xtc_uniform
from triserve.rpc.sampling import Sampling


class _Left(NamedTuple):
    """Ids that can be drawn still, rising."""

    ids: NDArray[np.intp]  # [left]
    logits: NDArray[np.float64]  # [left]
    scores: NDArray[np.float64]  # [left]

    def of(self, kept: NDArray[np.bool_] | NDArray[np.intp]) -> _Left:
        """Some of them, by a mask or by rising places."""
        return _Left(self.ids[kept], self.logits[kept], self.scores[kept])

    def weights(self) -> NDArray[np.float64]:
        """exp(score - best score): probabilities, but for their sum. [left]."""
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
    if sampling.top_k is not None and sampling.top_k < len(left.ids):
        left = left.of(_top_k(left, sampling.top_k))
    if sampling.typical_p < 1:
        left = left.of(_shortest_prefix(left, _surprise(left), sampling.typical_p))
    if sampling.top_p < 1:
        left = left.of(_shortest_prefix(left, -left.logits, sampling.top_p))
    if sampling.min_p > 0:
        left = left.of(left.weights() >= sampling.min_p)
    if sampling.xtc_probability > 0 and xtc_uniform(sampling.seed or 0, position) < sampling.xtc_probability:
        left = left.of(_without_top_choices(left, sampling.xtc_threshold))
    return left


def _top_k(left: _Left, top_k: int) -> NDArray[np.intp]:
    least = np.partition(left.logits, -top_k)[-top_k]
    at_least = np.flatnonzero(left.logits >= least)  # with all of its equals
    return np.sort(at_least[np.argsort(-left.logits[at_least], kind="stable")][:top_k])


def _surprise(left: _Left) -> NDArray[np.float64]:
    """|-log p - entropy|: the entropy is the mean of -log p = log(sum of weights) - below, and the logarithm is in both."""
    weights, below = left.weights(), left.scores - left.scores.max()
    surprise: NDArray[np.float64] = np.abs((weights * below).sum() / weights.sum() - below)
    return surprise


def _shortest_prefix(left: _Left, key: NDArray[np.float64], share: float) -> NDArray[np.intp]:
    """The first by rising key, then by rank, until their probabilities reach a share: rising places."""
    weights = left.weights()
    total = weights.sum()
    # The lighter ones have less than 1 - share together: the prefix ends at the latest where all others are in it.
    heavy = weights >= (1 - share) / 2 * total / len(weights)
    near = np.flatnonzero(key <= key[heavy].max())
    order = near[np.lexsort((-left.logits[near], key[near]))]
    count = int(np.searchsorted(np.cumsum(weights[order]), share * total)) + 1
    return np.sort(order[:count])


def _without_top_choices(left: _Left, threshold: float) -> NDArray[np.bool_]:
    """All but those of at least this probability; of those the last by rank stays."""
    weights = left.weights()
    above = np.flatnonzero(weights >= threshold * weights.sum())
    kept = np.ones(len(weights), np.bool_)
    kept[above[np.argsort(-left.logits[above], kind="stable")][:-1]] = False
    return kept


def _draw(left: _Left, seed: int, position: int) -> int:
    """The id of the largest score - log(e), the lowest of equals."""
    minima = block_minima(seed, position, int(left.ids[-1]) + 1)
    scores = np.full(LANES * len(minima.exponential), -np.inf)
    scores[left.ids] = left.scores
    # No e is below its block's smallest, so no key is above its bound; and the bound is the key of the id that has the smallest.
    in_lanes, in_blocks = (-1, LANES, LANE_STRIDE), (-1, 1, LANE_STRIDE)
    bounds = scores.reshape(in_lanes) - np.log(minima.exponential).reshape(in_blocks)
    known = np.take_along_axis(bounds, minima.lane.astype(np.intp).reshape(in_blocks), axis=1).max()
    ids = np.flatnonzero(bounds >= known) if known > -np.inf else left.ids
    keys = scores[ids] - np.log(exponentials(seed, position, ids.astype(np.uint64), minima))
    return int(ids[keys.argmax()])
