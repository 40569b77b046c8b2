"""Step 1 of a draw: what a request changes in its logits. See `SamplingParams` in common.proto, whose words the names here are."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from triserve.rpc.sampling import Sampling

# The longest repetition that DRY tells from a longer one.
MAX_DRY_TOKENS = 64
_LARGEST = float(np.finfo(np.float32).max)


class Changes:
    """One request's changes to logits, and the tokens they depend on.

    Args:
        sampling: checked.
        stopping_min_tokens: stop ids cannot be drawn before so many tokens.
        stop_token_ids: checked.
        prompt_token_ids: checked.
        logits_width: every id is below it.
    """

    def __init__(
        self,
        sampling: Sampling,
        stopping_min_tokens: int,
        stop_token_ids: Iterable[int],
        prompt_token_ids: Sequence[int],
        logits_width: int,
    ) -> None:
        self._sampling = sampling
        self._logits_width = logits_width
        self._repeats = sampling.repetition_penalty != 1
        self._counts_answer = self._repeats or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self._keeps_tokens = sampling.dry_multiplier != 0 or any(len(word) > 1 for word in sampling.bad_words)
        self._follows = self._counts_answer or self._keeps_tokens
        self._prompt = np.array(sorted(set(prompt_token_ids)) if self._repeats else (), np.intp)
        self._answer: Counter[int] = Counter()
        # Prompt and answer, where their order matters.
        self._tokens = array("I", prompt_token_ids if self._keeps_tokens else ())
        self._bias_ids = np.array(sampling.logit_bias_ids, np.intp)
        self._bias = np.array(sampling.logit_bias_values, np.float64)
        self._breakers = np.array(sampling.dry_breaker_ids, np.intp)
        self._min_tokens = stopping_min_tokens
        self._stop_ids = np.array(sorted(stop_token_ids), np.intp)
        self._always_banned = np.array([*sampling.banned_token_ids, *(word[0] for word in sampling.bad_words if len(word) == 1)], np.intp)
        self._not_allowed: NDArray[np.bool_] | None = None
        if sampling.allowed_token_ids:
            self._not_allowed = np.ones(logits_width, np.bool_)
            self._not_allowed[list(sampling.allowed_token_ids)] = False

    def count(self, token: int) -> None:
        """The answer goes on with a token."""
        if not self._follows:
            return
        if self._counts_answer:
            self._answer[token] += 1
        if self._keeps_tokens:
            self._tokens.append(token)

    def apply(self, logits: NDArray[np.float32], position: int) -> NDArray[np.float32]:
        """The logits that are drawn from.

        Args:
            logits: [width], as the model gave them; not modified.
            position: of the token to be drawn.

        Returns:
            [width]; the same array where nothing changes.
        """
        changed = self._change(logits)
        banned = self._banned_at(position)
        if len(banned) or self._not_allowed is not None:
            changed = changed.copy() if changed is logits else changed
            changed[banned] = -np.inf
            if self._not_allowed is not None:
                changed[self._not_allowed] = -np.inf
        return changed

    def banning_fields(self, position: int) -> list[str]:
        """The request's fields that ban tokens at a position."""
        fields = [name for name in ("allowed_token_ids", "banned_token_ids", "bad_words") if getattr(self._sampling, name)]
        return [*fields, "min_tokens"] if position < self._min_tokens and len(self._stop_ids) else fields

    def _change(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Penalties and bias."""
        sampling = self._sampling
        answer, times = np.array(list(self._answer), np.intp), np.array(list(self._answer.values()), np.float64)
        seen = np.concatenate((self._prompt, answer)) if self._repeats else answer
        repeated, lost = self._dry()
        if not (len(seen) or len(repeated) or len(self._bias_ids)):
            return logits
        changed = logits.astype(np.float64)
        if self._repeats:
            values = changed[seen]
            changed[seen] = np.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
        changed[answer] -= sampling.presence_penalty
        changed[answer] -= sampling.frequency_penalty * times
        changed[repeated] -= lost
        changed[self._bias_ids] += self._bias
        # No penalty makes a token impossible, and no bonus makes it certain.
        return np.where(logits > -np.inf, np.clip(changed, -_LARGEST, _LARGEST), -np.inf).astype(np.float32)

    def _dry(self) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Tokens that would make a repetition longer, no token twice, and what they lose."""
        sampling = self._sampling
        longest = np.zeros(self._logits_width if sampling.dry_multiplier != 0 else 0, np.intp)
        if len(longest) and self._tokens:
            tokens = np.frombuffer(self._tokens, np.uint32).astype(np.intp)
            breaks = np.isin(tokens, self._breakers)
            # By place, how many of the last tokens stand before it too.
            length = np.zeros(len(tokens), np.intp)
            behind = np.arange(len(tokens))
            for n in range(1, min(MAX_DRY_TOKENS, len(tokens)) + 1):
                if breaks[-n]:
                    break
                behind = behind[behind >= n]
                behind = behind[tokens[behind - n] == tokens[-n]]
                length[behind] = n
            np.maximum.at(longest, tokens, length)
            longest[self._breakers] = 0
        repeated = np.flatnonzero(longest >= sampling.dry_allowed_length)
        beyond = longest[repeated] - sampling.dry_allowed_length
        return repeated, sampling.dry_multiplier * sampling.dry_base ** beyond.astype(np.float64)

    def _banned_at(self, position: int) -> NDArray[np.intp]:
        tokens = self._tokens
        ends = [
            word[-1]
            for word in self._sampling.bad_words
            if len(word) > 1 and tuple(tokens[max(0, len(tokens) + 1 - len(word)) :]) == word[:-1]
        ]
        stops = self._stop_ids if position < self._min_tokens else self._stop_ids[:0]
        return np.concatenate((self._always_banned, stops, np.array(ends, np.intp)))
