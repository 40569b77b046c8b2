"""The ways to decide whether a near entry is served that are compared: similarity alone, the chain, the chain with what was observed, vCache's way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from prompt_cache.semantic.bound import exploration_probability
from prompt_cache.semantic.candidate import Candidate
from prompt_cache.semantic.evaluator import EvaluatorPolicy, evaluate
from prompt_cache.vectors.vector_store import Observation

# What a store keeps of an entry.
MAX_OBSERVATIONS = 64
_TARGET_ERROR_RATE = 0.01


class Nearest(NamedTuple):
    """A kept question near one that is asked.

    Attributes:
        pair_index: Of its pair in the half.
        cosine: Between the two.
    """

    pair_index: int
    question: str
    cosine: float


Decide = Callable[[str, Nearest], bool]
"""Whether the answer to the kept question is served for the one asked."""


def by_threshold(threshold: float) -> Decide:
    """Similarity alone."""
    return lambda asked, near: near.cosine >= threshold


def by_guards(threshold: float) -> Decide:
    """The chain with nothing observed."""
    policy = EvaluatorPolicy(threshold=threshold, bound="off")
    return lambda asked, near: evaluate(asked, _candidate(near), policy, draw=0.0).serve


def by_learned_bound(threshold: float, observations: Sequence[Observation]) -> Decide:
    """The chain in the mode that serves an entry only once the bound allows it, with these observations of every entry."""
    policy = EvaluatorPolicy(threshold=threshold, bound="explore", target_error_rate=_TARGET_ERROR_RATE)
    generator = np.random.default_rng(0)
    return lambda asked, near: evaluate(asked, _candidate(near, observations), policy, draw=generator.random()).serve


def by_bound_alone(observations: Sequence[Observation]) -> Decide:
    """vCache's way: no threshold and no guards."""
    generator = np.random.default_rng(0)
    return lambda asked, near: generator.random() >= exploration_probability(near.cosine, observations, _TARGET_ERROR_RATE)


def observe(decide: Decide, met: Sequence[tuple[str, Nearest, bool]]) -> list[Observation]:
    """What comparisons with the model would have shown, of those that a decision lets through; as many as an entry keeps, spread evenly.

    Args:
        met: The question asked, what was near, and whether its answer is right.
    """
    seen = [Observation(near.cosine, is_same) for asked, near, is_same in met if decide(asked, near)]
    if len(seen) <= MAX_OBSERVATIONS:
        return seen
    return [seen[round(place)] for place in np.linspace(0, len(seen) - 1, MAX_OBSERVATIONS)]


def _candidate(near: Nearest, observations: Sequence[Observation] = ()) -> Candidate:
    return Candidate(question=near.question, cosine=near.cosine, age_s=0.0, observations=observations)
