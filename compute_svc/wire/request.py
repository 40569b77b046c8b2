"""A request as the engine knows it: checked, resolved and independent of the wire."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from triserve.rpc.sampling import Sampling

Tokens = npt.NDArray[np.int64]


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One attempt at an answer.

    Attributes:
        number: Chosen by the caller, never used twice.
        tenant: Whose it is: prefixes are shared within a tenant alone.
        prompt: [n] int64, at least one id.
        generated: [m] int64, answer tokens of earlier attempts; fewer than max_tokens.
        max_tokens: Most answer tokens, those of earlier attempts included.
        submitted_at: Seconds on the caller's clock.
        min_tokens: Stop ids do not count before this many answer tokens.
        stop_token_ids: A drawn id of these ends the answer.
        sampling: How to draw.
        deadline: Seconds on the caller's clock; None = none.
        priority: Lower is sooner, below 0 too; counts where the scheduler's policy is by priority.
        pins: Nothing is to be answered: the prompt, whole pages, is to be kept in the prefix cache.
    """

    number: int
    tenant: str
    prompt: Tokens
    generated: Tokens
    max_tokens: int
    submitted_at: float
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY
    deadline: float | None = None
    priority: int = 0
    pins: bool = False
