"""A request as the engine knows it: checked, resolved and independent of the wire."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from triserve.rpc.sampling import Sampling
from triserve.v1 import compute_pb2

Tokens = npt.NDArray[np.int64]


GREEDY = Sampling(temperature=0.0)


class HiddenStates(Enum):
    """Which vectors behind the final norm are wanted; known tokens are those of the prompt and of earlier attempts."""

    NONE = compute_pb2.HIDDEN_STATES_UNSPECIFIED
    LAST = compute_pb2.HIDDEN_STATES_LAST
    MEAN = compute_pb2.HIDDEN_STATES_MEAN
    ALL = compute_pb2.HIDDEN_STATES_ALL


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One attempt at an answer.

    Attributes:
        number: Chosen by the caller, never used twice.
        tenant: Whose it is: prefixes are shared within a tenant alone.
        prompt: [n] int64, at least one id.
        generated: [m] int64, answer tokens of earlier attempts; fewer than max_tokens, or none.
        max_tokens: Most answer tokens, those of earlier attempts included; 0 = the prompt is computed and nothing is drawn.
        submitted_at: Seconds on the caller's clock.
        min_tokens: Stop ids do not count before this many answer tokens.
        stop_token_ids: A drawn id of these ends the answer.
        sampling: How to draw.
        deadline: Seconds on the caller's clock; None = none.
        priority: Lower is sooner, below 0 too; counts where the scheduler's policy is by priority.
        pins: The prompt, whole pages, is to be kept in the prefix cache, and nothing is drawn.
        hidden_states: Vectors that are wanted.
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
    hidden_states: HiddenStates = HiddenStates.NONE

    @property
    def draws_nothing(self) -> bool:
        """Whether it is over when its prompt is computed."""
        return self.max_tokens == 0

    @property
    def tells_each_token(self) -> bool:
        """Whether something is told of each of many known tokens."""
        return self.sampling.prompt_logprobs is not None or self.hidden_states is HiddenStates.ALL

    @property
    def logprob_tokens(self) -> range:
        """Positions of tokens of the prompt whose logits tell the log-probability of the next one."""
        return range(self.prompt.size - 1 if self.sampling.prompt_logprobs is not None else 0)

    @property
    def hidden_tokens(self) -> range:
        """Positions of known tokens whose hidden states are wanted."""
        num_known = self.prompt.size + self.generated.size
        if self.hidden_states is HiddenStates.NONE:
            return range(0)
        return range(num_known - 1 if self.hidden_states is HiddenStates.LAST else 0, num_known)

    @property
    def read_tokens(self) -> range:
        """From the first to the last of both: these have to be computed, whatever is cached."""
        parts = [part for part in (self.logprob_tokens, self.hidden_tokens) if part]
        return range(min(part.start for part in parts), max(part.stop for part in parts)) if parts else range(0)
