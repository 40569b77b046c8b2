"""What a request changes in its logits before they are drawn from: penalties, bias, and stop ids that may not come yet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from triserve.rpc.sampling import Sampling, Stopping

_FIRST_CAPACITY = 64


class Lookup:
    """Values by token id, for ids in any order: one dense array, filled, read and emptied again.

    Args:
        logits_width: every id is below it.
    """

    def __init__(self, logits_width: int) -> None:
        self._values = np.zeros(logits_width, np.float64)

    def values(self, ids: NDArray[np.uint32], known: NDArray[np.uint32], values: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """The value of each id; 0 for ids that are not known.

        Args:
            ids: [wanted].
            known: [known], distinct.
            values: [known], or one for all.
        """
        self._values[known] = values
        found = self._values[ids]
        self._values[known] = 0
        return found


class Penalties:
    """One request's changes to logits, and the tokens they depend on.

    Args:
        sampling: checked.
        stopping: checked.
        prompt_token_ids: checked.
    """

    def __init__(self, sampling: Sampling, stopping: Stopping, prompt_token_ids: Sequence[int]) -> None:
        self._repetition = sampling.repetition_penalty
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._counts_answer = self._repetition != 1 or self._presence != 0 or self._frequency != 0
        self._prompt = np.unique(np.array(prompt_token_ids if self._repetition != 1 else (), np.uint32))
        self._bias_ids = np.array(sampling.logit_bias_ids, np.uint32)
        self._bias = np.array(sampling.logit_bias_values, np.float64)
        self._stop_ids = np.array(sorted(stopping.stop_token_ids), np.uint32)
        self._min_tokens = stopping.min_tokens
        # [0, len(_index)) of both arrays are in use.
        self._index: dict[int, int] = {}
        self._answer_ids = np.zeros(_FIRST_CAPACITY, np.uint32)
        self._answer_counts = np.zeros(_FIRST_CAPACITY, np.float64)

    def count(self, token: int) -> None:
        """The answer goes on with a token."""
        if not self._counts_answer:
            return
        index = self._index.get(token)
        if index is None:
            index = self._index[token] = len(self._index)
            if index == len(self._answer_ids):
                self._answer_ids = np.concatenate((self._answer_ids, np.zeros_like(self._answer_ids)))
                self._answer_counts = np.concatenate((self._answer_counts, np.zeros_like(self._answer_counts)))
            self._answer_ids[index] = token
        self._answer_counts[index] += 1

    def bans_at(self, position: int) -> bool:
        """Whether stop ids may not come at a position."""
        return position < self._min_tokens and len(self._stop_ids) > 0

    def changes_at(self, position: int) -> bool:
        """Whether any logit at a position may differ from the raw one."""
        seen_some = bool(self._index) or len(self._prompt) > 0
        return seen_some or len(self._bias_ids) > 0 or self.bans_at(position)

    def apply(self, ids: NDArray[np.uint32], logits: NDArray[np.float64], position: int, lookup: Lookup) -> None:
        """Changes raw logits to those that are drawn from.

        Args:
            ids: [candidates].
            logits: [candidates].
            position: of the token to be drawn.
            lookup: shared by all requests of a session.

        Effects: writes logits in place.
        """
        answer = self._answer_ids[: len(self._index)]
        counts = self._answer_counts[: len(self._index)]
        if self._repetition != 1:
            seen = lookup.values(ids, np.concatenate((self._prompt, answer)), 1.0) > 0
            logits[seen] = np.where(logits[seen] > 0, logits[seen] / self._repetition, logits[seen] * self._repetition)
        if self._presence != 0 or self._frequency != 0:
            times = lookup.values(ids, answer, counts)
            logits -= self._presence * (times > 0)
            logits -= self._frequency * times
        if len(self._bias_ids):
            logits += lookup.values(ids, self._bias_ids, self._bias)
        if self.bans_at(position):
            logits[lookup.values(ids, self._stop_ids, 1.0) > 0] = -np.inf
