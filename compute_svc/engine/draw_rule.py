"""Which logits of a row a draw can depend on: the exactness rule of candidates; knows no tensor and draws nothing."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compute_svc.wire.request import Request, SamplingOptions

NEVER = 1 << 62

# A draw adds to logit / temperature -log(-log(u)) with u = (x + 0.5) / 2 ** 32 and x any 32-bit word, and takes the largest sum.
# So a token whose logit / temperature lies further below another's than the noise can differ is never drawn.
_NOISE_RANGE = 33 * math.log(2) + math.log(33 * math.log(2)) + 1e-3
# Room for the rounding of whoever draws, relative to the numbers compared.
_SLACK = 1e-4
# A row that needed all ids is tried with fewer again after so many positions.
_RETRY_POSITIONS = 16

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


class CandidateLimits(NamedTuple):
    """How many of a row's likeliest ids are looked at.

    Attributes:
        first_guess: Ids looked at first where the row must tell how many are needed.
        most: Ids looked at next, and the most that are sent; beyond, all are.
        share: One in so many of a row's ids is worth looking for; where it would be more, all are sent.
    """

    first_guess: int = 64
    most: int = 1024
    share: int = 8


DEFAULT_LIMITS = CandidateLimits()


class DrawRule:
    """Says how many of a row's likeliest ids, and which others, make the draw exact.

    With C the ids sent and the penalties, biases and bans of the request applied to their logits, the draw from C is the draw from
    the full row: an id that is not sent either cannot come to the front of those that are, or is cut off by top-k, top-p, min-p or
    the range of the noise. Modified ids that could rise are sent always; modified ids that can only fall need not be, because they
    stay behind the unmodified ids that are sent.

    Args:
        request: Whose rows.
        logits_width: Number of logits.
        limits: How far to look.

    Attributes:
        drawn_from: The first position whose token needs no sampler: greedy and nothing modified.
        num_reported: Likeliest ids that log-probabilities need; 0 = none.
    """

    def __init__(self, request: Request, logits_width: int, limits: CandidateLimits = DEFAULT_LIMITS) -> None:
        options = request.sampling
        self._limits = limits
        self._options = options
        self._width = logits_width
        self._num_prompt = request.prompt.size
        self._min_tokens = request.min_tokens if request.stop_token_ids else 0
        self._stop_ids = np.fromiter(sorted(request.stop_token_ids), dtype=np.int64, count=len(request.stop_token_ids))
        self._is_modified: npt.NDArray[np.bool_] | None = None
        self._watches_seen = options.has_penalties and not options.penalties_only_lower
        self._modifies = options.has_penalties or bool(options.bias_ids)
        self._needed = _needed(options, logits_width)
        self._full_until = 0
        self.num_reported = 0 if options.top_logprobs is None else min(options.top_logprobs + 1, logits_width)
        self.drawn_from = self._min_tokens if options.temperature == 0.0 and not self._modifies else NEVER

    @property
    def watches(self) -> bool:
        """Whether ids are sent that are not among the likeliest."""
        return self._watches_seen or bool(self._options.bias_ids)

    def see(self, tokens: Ids, num_tokens: int) -> None:
        """Learns the tokens so far; called once before the first row, and cheap without penalties and biases.

        Args:
            tokens: [>= num_tokens] int64, prompt and answer.
            num_tokens: How many are known.
        """
        if not self._modifies:
            return
        modified = np.zeros(self._width, dtype=np.bool_)
        if self._options.has_penalties:
            first = 0 if self._options.repetition_penalty != 1.0 else self._num_prompt
            modified[tokens[first:num_tokens]] = True
        modified[list(self._options.bias_ids)] = True
        self._is_modified = modified

    def see_next(self, token: int) -> None:
        """Learns one more token of the answer."""
        if self._is_modified is not None and self._options.has_penalties:
            self._is_modified[token] = True

    def fixed_length(self, position: int) -> int | None:
        """How many of the likeliest ids suffice whatever the logits are; None if it depends on them."""
        if position >= self.drawn_from:
            return self.num_reported
        if self._needed is None or self._modifies or position < self._min_tokens:
            return None
        length = max(self._needed, self.num_reported)
        return length if length <= self._limits.most else self._width

    def first_width(self, position: int) -> int:
        """How many of the likeliest ids to look at first; the width of the row if fewer cannot suffice."""
        if position < self._full_until or self._normaliser_is_unknown(position):
            return self._width
        if self._needed is None:
            return max(self._limits.first_guess, self.num_reported)
        modified = 0 if self._is_modified is None else int(np.count_nonzero(self._is_modified))
        banned = self._stop_ids.size if position < self._min_tokens else 0
        return max(self._needed + min(modified + banned, self._limits.first_guess // 2 + self._needed), self.num_reported)

    def length(self, ids: Ids, logits: Logits, log_sum_exp: float, position: int) -> int | None:
        """How many of these ids, from the front, make the draw exact together with `watched`.

        Args:
            ids: [n] the row's likeliest ids, by falling logit, then by rising id.
            logits: [n] their logits.
            log_sum_exp: Of the full row.
            position: Index of the token to be drawn.

        Returns:
            None if more than n are needed, or it cannot be told from n.
        """
        free = np.flatnonzero(self._is_free(ids, position))
        if self._needed is not None:
            if free.size < self._needed:
                return None
            return max(int(free[self._needed - 1]) + 1, self.num_reported)
        if not free.size or self._normaliser_is_unknown(position):
            return None
        temperature, best = self._options.temperature, float(logits[free[0]])
        reach = -math.log(self._options.min_p) if self._options.min_p > 0.0 else _NOISE_RANGE
        lowest = best - min(reach, _NOISE_RANGE) * temperature - _SLACK * (1.0 + abs(best))
        length = int(np.count_nonzero(logits >= lowest))
        if self._options.top_p < 1.0:
            mass = np.cumsum(np.exp(logits.astype(np.float64) - log_sum_exp))
            length = min(length, int(np.searchsorted(mass, self._options.top_p + _SLACK)) + 1)
        return None if length >= ids.size else max(length, self.num_reported)

    def watched(self) -> Ids:
        """Ids that are sent whatever their logits are, rising: those a bias or a negative penalty could raise."""
        if self._watches_seen:
            assert self._is_modified is not None, "the tokens so far are seen before the first row"
            return np.flatnonzero(self._is_modified)
        return np.unique(np.array(self._options.bias_ids, dtype=np.int64))

    def needed_all(self, position: int) -> None:
        """Remembers that a row needed all ids, so that the next ones do not try with fewer in vain."""
        self._full_until = position + _RETRY_POSITIONS

    def _is_free(self, ids: Ids, position: int) -> npt.NDArray[np.bool_]:
        """Which of the ids keep the logit the model gave them."""
        free = np.ones(ids.size, dtype=np.bool_) if self._is_modified is None else ~self._is_modified[ids]
        if position < self._min_tokens:
            free &= ~np.isin(ids, self._stop_ids)
        return free

    def _normaliser_is_unknown(self, position: int) -> bool:
        """Whether top-p cuts a distribution whose sum cannot be had from log_sum_exp: at another temperature, or modified."""
        options = self._options
        cuts = self._needed is None and options.top_p < 1.0
        return cuts and (options.temperature != 1.0 or self._modifies or position < self._min_tokens)


def _needed(options: SamplingOptions, logits_width: int) -> int | None:
    """How many of the best unmodified ids bound the draw; None if the row must tell."""
    if options.temperature == 0.0:
        return 1
    return None if options.top_k is None else min(options.top_k, logits_width)
