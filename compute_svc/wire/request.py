"""A request as the engine knows it: checked, resolved and independent of the wire."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What decides which logits a draw can depend on. The draw itself, seed and bias values included, is the sampler's.

    Attributes:
        temperature: 0 = greedy.
        top_k: None = all tokens.
        top_p: 1 = all tokens.
        min_p: 0 = all tokens.
        repetition_penalty: 1 = none.
        presence_penalty: 0 = none.
        frequency_penalty: 0 = none.
        bias_ids: Token ids whose logits have a bias.
        top_logprobs: How many of the likeliest tokens are reported; None = no log-probabilities at all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias_ids: tuple[int, ...] = ()
    top_logprobs: int | None = None

    @property
    def has_penalties(self) -> bool:
        """Whether the logits of seen tokens are changed."""
        return self.repetition_penalty != 1.0 or self.has_answer_penalties

    @property
    def has_answer_penalties(self) -> bool:
        """Whether the logits of tokens seen in the answer are changed."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def penalties_only_lower(self) -> bool:
        """Whether no penalty can raise a logit."""
        return self.repetition_penalty >= 1.0 and self.presence_penalty >= 0.0 and self.frequency_penalty >= 0.0


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
    sampling: SamplingOptions = SamplingOptions()
    deadline: float | None = None
    priority: int = 0
    pins: bool = False
