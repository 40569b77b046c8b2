"""How sure the observations of an entry make us that it may be served at a similarity: vCache's bound, per entry (arXiv 2502.03771).

The answer of an entry is right for a question at similarity s with probability sigmoid(gamma * (s - t)). vCache fits gamma and t, and
takes an upper confidence limit of t by the delta method, which breaks down where all observations agree or a cut parts them. Here the two
are not fitted but weighed: over a grid of both, each pair counts as much as it explains the observations. Everything else is vCache's: for
any eps, the answer is wrong with at most p = eps + (1 - eps) * q, q being exceeded with probability eps; serving with probability
delta / p keeps the error under delta; the best eps is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prompt_cache.vectors.vector_store import Observation

# With fewer an entry says nothing: the model answers.
MIN_OBSERVATIONS = 6

_MIDPOINTS = np.linspace(0.0, 1.15, 36)
_SLOPES = np.geomspace(4.0, 160.0, 8)
_T, _GAMMA = (grid.ravel() for grid in np.meshgrid(_MIDPOINTS, _SLOPES, indexing="ij"))  # [288] each
_EPSILONS = np.geomspace(1e-5, 0.5, 50)


def exploration_probability(cosine: float, observations: Sequence[Observation], target_error_rate: float) -> float:
    """The share of requests at a similarity that must go to the model, so that no more than the target is answered wrong.

    Args:
        cosine: Of the question asked to that of the entry.
        observations: Of the entry.
        target_error_rate: In (0, 1]; of all requests at this similarity, those that went to the model counted as right.

    Returns:
        In [0, 1]; 1 while there are fewer than `MIN_OBSERVATIONS`. Never rises with the similarity.
    """
    if len(observations) < MIN_OBSERVATIONS:
        return 1.0
    weights = _posterior(observations)
    wrong = 1.0 - _right(np.float64(cosine))
    order = np.argsort(wrong)
    # Probability mass above each value of the error.
    above = 1.0 - np.cumsum(weights[order])
    places = np.searchsorted(-above, -_EPSILONS)
    quantiles = wrong[order][np.minimum(places, len(order) - 1)]
    limit = float(np.min(_EPSILONS + (1.0 - _EPSILONS) * quantiles))
    return max(0.0, 1.0 - target_error_rate / limit)


def _posterior(observations: Sequence[Observation]) -> npt.NDArray[np.float64]:
    cosines = np.array([observation.cosine for observation in observations])  # [n]
    signs = np.array([-1.0 if observation.is_same else 1.0 for observation in observations])
    logits = _GAMMA[:, None] * (cosines[None, :] - _T[:, None])  # [288, n]
    log_likelihood = -np.logaddexp(0.0, signs * logits).sum(axis=1)
    weights = np.exp(log_likelihood - log_likelihood.max())
    return np.asarray(weights / weights.sum())


def _right(cosine: np.float64) -> npt.NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-_GAMMA * (cosine - _T))))
