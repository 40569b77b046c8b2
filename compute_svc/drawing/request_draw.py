"""One request's constants of its draws, and what of its changes depends on the tokens so far in a way that the host finds out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing.rows import Needs, Settings
from triserve.rpc.sampling import Sampling

Ids = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MAX_DRY_TOKENS = 64
_NO_IDS: Ids = np.empty(0, dtype=np.int64)
_NO_NUMBERS: Numbers = np.empty(0, dtype=np.float64)


class Adjustments(NamedTuple):
    """What single ids lose and gain.

    Attributes:
        ids: [n], no id twice.
        losses: [n], subtracted first.
        gains: [n], added then.
    """

    ids: Ids
    losses: Numbers
    gains: Numbers


class RequestDraw:
    """One request's draws: what never changes of them, and what the host finds out for each. Makes nothing on a device.

    Args:
        sampling: Checked.
        min_tokens: Stop ids cannot be drawn before so many tokens of the answer.
        stop_token_ids: Checked.
        num_prompt: Tokens of the prompt.
        logits_width: Number of logits.

    Attributes:
        is_bare: Nothing but the largest logit is wanted, from `bare_from` on: greedy, nothing changed, no log-probabilities.
        bare_from: Where `min_tokens` ends.
        counts: Whether penalties need to know which tokens there are.
        counts_prompt: Whether they need to know those of the prompt.
        penalties: Repetition, presence and frequency penalty.
        top_logprobs: How many likeliest ids are reported; None = no log-probabilities.
        allowed: Ids beside which nothing can be drawn; None = everything can.
        has_grammar: What can be drawn is told for each position, by `set_mask`.
        kept: [1, width] float32, logits of a row that waits to be told; None = none does.
    """

    def __init__(self, sampling: Sampling, *, min_tokens: int, stop_token_ids: Collection[int], num_prompt: int, logits_width: int) -> None:
        self.sampling = sampling
        self.num_prompt = num_prompt
        self.greedy = sampling.greedy
        self.seed = sampling.seed or 0
        self.top_logprobs = sampling.top_logprobs
        self.penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        self.counts = self.penalties != (1.0, 0.0, 0.0)
        self.counts_prompt = sampling.repetition_penalty != 1.0
        self.bare_from = min_tokens if stop_token_ids else 0
        self.allowed = _ids(sampling.allowed_token_ids) if sampling.allowed_token_ids else None
        self._stop_ids = _ids(stop_token_ids) if self.bare_from else _NO_IDS
        self._banned = _ids((*sampling.banned_token_ids, *(word[0] for word in sampling.bad_words if len(word) == 1)))
        self._words = _Words([word for word in sampling.bad_words if len(word) > 1])
        self._bias_ids = np.array(sampling.logit_bias_ids, dtype=np.int64)
        self._bias = np.array(sampling.logit_bias_values, dtype=np.float64)
        self._dry = _Dry(sampling) if sampling.dry_multiplier > 0 else None
        self.adjusts = self._bias_ids.size > 0 or self._dry is not None
        self.has_grammar = sampling.grammar is not None
        self.kept: torch.Tensor | None = None
        self._mask: Mask | None = None
        self._mask_position = -1
        self._forced: tuple[int, ...] = ()
        self._bans_always = self._banned.size > 0 or self.allowed is not None or self._words.any or self.has_grammar
        # Whether the only token that a grammar allows is the one that is drawn, and nothing is told of it but the token.
        self._is_forced_by_grammar = not (
            self._banned.size or self.allowed is not None or self._words.any or self.bare_from or self.top_logprobs is not None
        )
        self._changes_always = self.counts or self.adjusts or self._bans_always
        self.is_bare = self.greedy and not self._changes_always and self.top_logprobs is None
        self._top_k = float("inf") if sampling.top_k is None or sampling.top_k >= logits_width else float(sampling.top_k)
        self._needs, self.settings = self._filters(xtc=False)
        self._needs_with_xtc, self.settings_with_xtc = self._filters(xtc=True)

    @property
    def is_plain(self) -> bool:
        """Whether it is drawn with noise, from `bare_from` on from the logits as they are, nothing else is wanted and XTC never acts."""
        return not (self.greedy or self._changes_always or self.may_drop) and self.top_logprobs is None

    @property
    def may_drop(self) -> bool:
        """Whether XTC acts at some positions."""
        return not self.greedy and self.sampling.xtc_probability > 0

    def changes_at(self, position: int) -> bool:
        """Whether logits at a position may differ from those the model gives."""
        return self._changes_always or position < self.bare_from

    def set_mask(self, position: int, mask: Mask, forced: Sequence[int] = ()) -> None:
        """What can be drawn at a position.

        Args:
            position: Index of the token in the answer.
            mask: [width].
            forced: The token there and those behind it, as far as the grammar leaves no choice.
        """
        self._mask_position, self._mask = position, mask
        self._forced = tuple(forced) if self._is_forced_by_grammar else ()

    def is_told(self, position: int) -> bool:
        """Whether a row at a position can be drawn."""
        return not self.has_grammar or position == self._mask_position

    def mask(self, position: int) -> Mask | None:
        """What can be drawn at a position, [width]; None = everything can, as far as a grammar says."""
        assert self.is_told(position), "a row waits until it is known what can be drawn"
        return self._mask if self.has_grammar else None

    def forced_behind(self, position: int) -> tuple[int, ...]:
        """Tokens that follow the one at a position whatever their logits are."""
        return self._forced[1:] if position == self._mask_position else ()

    def needs(self, *, xtc: bool) -> Needs:
        """What the filters need where XTC acts, or where it does not."""
        return self._needs_with_xtc if xtc else self._needs

    def bans(self, tokens: Ids) -> Ids:
        """Ids that cannot be drawn next, some perhaps twice, beside those that `allowed` leaves out.

        Args:
            tokens: Prompt and answer so far.
        """
        found = self._banned
        if self._words.any:
            found = np.concatenate((found, self._words.ends(tokens)))
        if tokens.size - self.num_prompt < self.bare_from:
            found = np.concatenate((found, self._stop_ids))
        return found

    def adjustments(self, tokens: Ids) -> Adjustments:
        """DRY's penalties and the bias.

        Args:
            tokens: Prompt and answer so far.
        """
        if self._dry is None:
            return Adjustments(self._bias_ids, np.zeros(self._bias.size), self._bias)
        repeated, losses = self._dry.losses(tokens)
        if not self._bias_ids.size:
            return Adjustments(repeated, losses, np.zeros(losses.size))
        ids = np.union1d(repeated, self._bias_ids)
        both = Adjustments(ids, np.zeros(ids.size), np.zeros(ids.size))
        both.losses[np.searchsorted(ids, repeated)] = losses
        both.gains[np.searchsorted(ids, self._bias_ids)] = self._bias
        return both

    def _filters(self, *, xtc: bool) -> tuple[Needs, Numbers]:
        sampling = self.sampling
        sigma = float("inf") if sampling.top_n_sigma is None else sampling.top_n_sigma
        threshold = sampling.xtc_threshold if xtc else float("inf")
        settings = Settings(sampling.temperature, self._top_k, sampling.typical_p, sampling.top_p, sampling.min_p, sigma, threshold)
        rank = self._top_k < float("inf") or sampling.typical_p < 1 or sampling.top_p < 1 or xtc
        needs = Needs(
            rank=rank,
            mass=rank and self._top_k == float("inf"),
            typical=sampling.typical_p < 1,
            min_p=sampling.min_p > 0,
            sigma=sampling.top_n_sigma is not None,
            xtc=xtc,
        )
        return needs, np.array(settings, dtype=np.float64)


class _Words:
    """Sequences of two or more ids that cannot be drawn to their end."""

    def __init__(self, words: list[tuple[int, ...]]) -> None:
        self.any = bool(words)
        self._length = max((len(word) for word in words), default=1) - 1
        # [words, length]: what comes before the last id, at the right; -1 before that stands for anything.
        self._before = np.full((len(words), self._length), -1, dtype=np.int64)
        for row, word in zip(self._before, words, strict=True):
            row[self._length - len(word) + 1 :] = word[:-1]
        self._ends = np.array([word[-1] for word in words], dtype=np.int64)

    def ends(self, tokens: Ids) -> Ids:
        """The last ids of those that the tokens complete but for it."""
        near = np.flatnonzero(self._before[:, -1] == tokens[-1]) if tokens.size else _NO_IDS
        if not near.size:
            return _NO_IDS
        tail = np.full(self._length, -2, dtype=np.int64)
        length = min(self._length, tokens.size)
        tail[self._length - length :] = tokens[tokens.size - length :]
        before = self._before[near]
        ends: Ids = self._ends[near[((before == tail) | (before == -1)).all(axis=1)]]
        return ends


class _Dry:
    """The penalty for going on with what was said before."""

    def __init__(self, sampling: Sampling) -> None:
        self._allowed = sampling.dry_allowed_length
        self._breakers = np.unique(np.array(sampling.dry_breaker_ids, dtype=np.int64))
        # By the number of tokens that were said before.
        self._losses = np.array(
            [0.0] * self._allowed
            + [sampling.dry_multiplier * sampling.dry_base ** (n - self._allowed) for n in range(self._allowed, MAX_DRY_TOKENS + 1)]
        )

    def losses(self, tokens: Ids) -> tuple[Ids, Numbers]:
        """Ids that lose something, rising, and how much."""
        longest = self._longest(tokens)
        if longest < self._allowed:
            return _NO_IDS, _NO_NUMBERS
        last = tokens.size - 1
        # Ends of what came before: each is followed by a token.
        ends = np.flatnonzero(tokens[:last] == tokens[last])
        lengths = np.ones(ends.size, dtype=np.int64)
        alive = np.arange(ends.size)
        for n in range(1, longest):
            alive = alive[ends[alive] >= n]
            alive = alive[tokens[ends[alive] - n] == tokens[last - n]]
            if not alive.size:
                break
            lengths[alive] += 1
        following = tokens[ends + 1]
        counts = lengths >= self._allowed
        if self._breakers.size:
            counts &= ~np.isin(following, self._breakers)
        ids, places = np.unique(following[counts], return_inverse=True)
        most = np.zeros(ids.size, dtype=np.int64)
        np.maximum.at(most, places, lengths[counts])
        return ids, self._losses[most]

    def _longest(self, tokens: Ids) -> int:
        """How many of the last tokens may be looked for: none reaches a breaker."""
        tail = tokens[max(0, tokens.size - MAX_DRY_TOKENS) :]
        if not self._breakers.size:
            return int(tail.size)
        breaks = np.flatnonzero(np.isin(tail, self._breakers))
        return int(tail.size - 1 - breaks[-1]) if breaks.size else int(tail.size)


def _ids(ids: Collection[int]) -> Ids:
    return np.unique(np.array(list(ids), dtype=np.int64))
