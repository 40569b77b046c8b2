"""An entry that may be served for a question, and what was decided about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prompt_cache.vectors.vector_store import Observation


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A kept question near the one that is asked.

    Attributes:
        question: As it was asked, normalised by `normalise`.
        cosine: Between the two.
        age_s: Since its answer was made.
        observations: What comparisons with the model showed.
    """

    question: str
    cosine: float
    age_s: float
    observations: Sequence[Observation] = ()


class StepResult(NamedTuple):
    """What one step of the chain said.

    Attributes:
        step: Its name: "threshold", "numbers", "negation", ...
        passed: Whether the candidate may go on.
        detail: Why, for `triserve cache explain`: names words of the two questions.
    """

    step: str
    passed: bool
    detail: str


class Verdict(NamedTuple):
    """Whether a candidate is served.

    Attributes:
        serve: Whether it is.
        refused_by: The first step that refused it; None if none did.
        explore: All steps but the learned bound passed: the model answers, and the two answers are compared.
    """

    serve: bool
    refused_by: str | None
    explore: bool
