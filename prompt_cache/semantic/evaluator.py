"""The chain that decides whether a candidate is served: threshold, guards, freshness, what was observed of the entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from prompt_cache.semantic.bound import exploration_probability
from prompt_cache.semantic.candidate import Candidate, StepResult, Verdict
from prompt_cache.semantic.guards import GUARDS
from prompt_cache.semantic.normalise import normalise
from prompt_cache.semantic.parsing.parse import parse

# Under these two questions are not worth comparing. They keep work away from the guards; they do not tell right from wrong, guards do.
DEFAULT_THRESHOLD = 0.75
# Of an embedder that compares spelling: other questions share words too.
DEFAULT_THRESHOLD_WEAK = 0.5

# off: observations are ignored but for those that show the entry wrong. suffice: guards are trusted until an observation shows the entry
# wrong; then the bound decides. explore: an entry is served only once the bound allows it, as vCache does.
BoundMode = Literal["off", "suffice", "explore"]

# Two cosines of one pair of vectors differ by rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class EvaluatorPolicy:
    """What is asked of a candidate.

    Attributes:
        threshold: Least cosine, in [-1, 1]; None takes the default of the embedder's class. 0 is a threshold.
        is_weak_embedder: Whether cosines compare spelling and not meaning.
        max_age_s: Oldest answer that is served; None for any. 0 serves what was made this instant alone.
        bound: How observations are used.
        target_error_rate: Share of requests the bound lets be answered wrong, in (0, 1).
        grey_margin: How far below the threshold a candidate may be to be explored, and served once the bound allows it: the grey zone. In [0, 2].

    Raises:
        ValueError: a field is out of its range.
    """

    threshold: float | None = None
    is_weak_embedder: bool = False
    max_age_s: float | None = None
    bound: BoundMode = "suffice"
    target_error_rate: float = 0.01
    grey_margin: float = 0.0

    def __post_init__(self) -> None:
        if self.threshold is not None and not -1.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold is {self.threshold}, it must be in [-1, 1]")
        if self.max_age_s is not None and not self.max_age_s >= 0.0:
            raise ValueError(f"max_age_s is {self.max_age_s}, it must be at least 0")
        if not 0.0 < self.target_error_rate < 1.0:
            raise ValueError(f"target_error_rate is {self.target_error_rate}, it must be in (0, 1)")
        if not 0.0 <= self.grey_margin <= 2.0:
            raise ValueError(f"grey_margin is {self.grey_margin}, it must be in [0, 2]")
        if self.bound not in ("off", "suffice", "explore"):
            raise ValueError(f"bound is {self.bound!r}, it must be 'off', 'suffice' or 'explore'")

    @property
    def least_cosine(self) -> float:
        """The threshold in force."""
        if self.threshold is not None:
            return self.threshold
        return DEFAULT_THRESHOLD_WEAK if self.is_weak_embedder else DEFAULT_THRESHOLD


def evaluate(asked: str, candidate: Candidate, policy: EvaluatorPolicy, draw: float) -> Verdict:
    """Decides about one candidate; stops at the first step that refuses it.

    Args:
        asked: The question, normalised or not.
        draw: Uniform in [0, 1): whether a candidate of which the bound is not sure explores.

    Raises:
        ValueError: `draw` is out of its range.
    """
    for step in _steps(asked, candidate, policy, draw):
        if not step.passed:
            return Verdict(serve=False, refused_by=step.step, explore=step.step == "learned")
    return Verdict(serve=True, refused_by=None, explore=False)


def explain(asked: str, candidate: Candidate, policy: EvaluatorPolicy, draw: float) -> list[StepResult]:
    """What every step says, those after a refusal too. Arguments as for `evaluate`."""
    return list(_steps(asked, candidate, policy, draw))


def _steps(asked: str, candidate: Candidate, policy: EvaluatorPolicy, draw: float) -> Iterator[StepResult]:
    if not 0.0 <= draw < 1.0:
        raise ValueError(f"draw is {draw}, it must be in [0, 1)")
    # Written so that a cosine that is no number is refused.
    near = candidate.cosine >= policy.least_cosine - policy.grey_margin - _ROUNDING
    grey = " (in the grey zone)" if near and _is_grey(candidate, policy) else ""
    yield StepResult("threshold", near, f"cosine {candidate.cosine:.4f}, at least {policy.least_cosine:.4f} is asked{grey}")
    mine, theirs = parse(normalise(asked)), parse(normalise(candidate.question))
    for name, guard in GUARDS.items():
        reason = guard(mine, theirs)
        yield StepResult(name, reason is None, reason or "")
    yield _freshness(candidate, policy)
    yield _seen_wrong(candidate)
    yield _learned(candidate, policy, draw)


def _freshness(candidate: Candidate, policy: EvaluatorPolicy) -> StepResult:
    if policy.max_age_s is None:
        return StepResult("freshness", True, f"{candidate.age_s:.0f} s old, any age is served")
    fresh = candidate.age_s <= policy.max_age_s
    return StepResult("freshness", fresh, f"{candidate.age_s:.0f} s old, at most {policy.max_age_s:.0f} s are allowed")


def _seen_wrong(candidate: Candidate) -> StepResult:
    """An answer that was wrong for a question this near is wrong for those that are farther."""
    wrong = [observation.cosine for observation in candidate.observations if not observation.is_same]
    if wrong and candidate.cosine <= max(wrong) + _ROUNDING:
        return StepResult("seen_wrong", False, f"was wrong at cosine {max(wrong):.4f}")
    return StepResult("seen_wrong", True, f"{len(candidate.observations)} observations, {len(wrong)} of them wrong")


def _learned(candidate: Candidate, policy: EvaluatorPolicy, draw: float) -> StepResult:
    is_grey = _is_grey(candidate, policy)
    if policy.bound == "off" and not is_grey:
        return StepResult("learned", True, "not in use")
    if policy.bound == "suffice" and not is_grey and all(observation.is_same for observation in candidate.observations):
        return StepResult("learned", True, "nothing observed against it")
    explored = exploration_probability(candidate.cosine, candidate.observations, policy.target_error_rate)
    detail = f"{len(candidate.observations)} observations: explores with probability {explored:.3f}"
    return StepResult("learned", draw >= explored, detail)


def _is_grey(candidate: Candidate, policy: EvaluatorPolicy) -> bool:
    """Whether it is below the threshold: what was observed of the entry alone can let it be served."""
    return candidate.cosine < policy.least_cosine - _ROUNDING
