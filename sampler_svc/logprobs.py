"""Log-probabilities of the model's own distribution, before penalties and temperature, and which part of the text each belongs to."""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampler_svc.detokenizer import Fed
from sampler_svc.errors import Disagreement
from sampler_svc.sampler import likeliest


class TopToken(NamedTuple):
    """One of the likeliest tokens."""

    token: int
    logprob: float


class TokenLogprob(NamedTuple):
    """One token of the answer and what else was likely in its place."""

    token: int
    logprob: float
    top: list[TopToken]  # falling


@dataclass(slots=True)
class TextLogprob:
    """A token's log-probabilities at its place in the answer's text.

    Texts of all entries together are the answer's text, and so are their bytes, but for those that are no UTF-8.

    Args:
        entry: the log-probabilities.
        text: characters that the token completes; empty for the first tokens of one character.
        added: its own bytes.
        offset: characters of the answer before the one its first byte belongs to.
        end: characters of the answer up to the last it completes.
    """

    entry: TokenLogprob
    text: str
    added: bytes
    offset: int
    end: int


class LogprobTrail:
    """Gives each token's log-probabilities out when its text is sent, and drops those of text that never is.

    Text is held back while it may become a character or a stop string; a stop string cuts it off, in the middle of a token too.
    """

    __slots__ = ("_fed", "_held", "_whole")

    def __init__(self) -> None:
        self._held: deque[TextLogprob] = deque()
        self._fed = 0
        # Of the held ones, how many end in whole characters.
        self._whole = 0

    def feed(self, entry: TokenLogprob | None, fed: Fed, *, pending_before: bool, pending: bool) -> None:
        """Takes the next token in.

        Args:
            entry: None = it was delivered by an earlier attempt.
            fed: what the token did to the text.
            pending_before: whether the detokenizer held something back before it.
            pending: whether it does now.
        """
        before = _completed_by_others(fed) if pending_before else 0
        if before and self._held:
            self._held[-1].text += fed.text[:before]
            self._held[-1].end = self._fed + before
        if entry is not None:
            self._held.append(TextLogprob(entry, fed.text[before:], fed.added, self._fed + before, self._fed + len(fed.text)))
        self._fed += len(fed.text)
        if not pending:
            self._whole = len(self._held)

    def flush(self, text: str) -> None:
        """Takes in the end of the text, which the last tokens made."""
        self._fed += len(text)
        if text and self._held:
            self._held[-1].text += text
            self._held[-1].end = self._fed
        self._whole = len(self._held)

    def sent(self, length: int) -> list[TextLogprob]:
        """Entries whose text is sent now that so many characters of the answer are."""
        ready: list[TextLogprob] = []
        while self._whole and self._held[0].end <= length:
            ready.append(self._held.popleft())
            self._whole -= 1
        return ready

    def cut(self, length: int) -> list[TextLogprob]:
        """The last entries of an answer that a stop string ends after so many characters."""
        kept = [one for one in self._held if one.offset < length]
        if kept and (beyond := kept[-1].end - length) > 0:
            last = kept[-1]
            last.added = last.added[: -len(last.text[-beyond:].encode())]
            last.text, last.end = last.text[:-beyond], length
        return kept


def _completed_by_others(fed: Fed) -> int:
    """Characters a token completes that end before its own first byte: what was pending and turned out to be none."""
    if not fed.added or 0x80 <= fed.added[0] < 0xC0:  # it goes on with what was pending
        return 0
    own, _ = codecs.utf_8_decode(fed.added, "replace", False)
    return max(0, len(fed.text) - len(own))


def token_logprob(
    ids: NDArray[np.uint32], logits: NDArray[np.float32], log_sum_exp: float, token: int, num_top: int, logits_width: int
) -> TokenLogprob:
    """The log-probabilities to report with a token: logit - log_sum_exp.

    Args:
        ids: [candidates] of the token's row.
        logits: [candidates], raw.
        log_sum_exp: of all logits of the row.
        token: the drawn one.
        num_top: how many of the likeliest to report.
        logits_width: number of logits of the row.

    Raises:
        Disagreement: the token or enough others are not among the candidates, or a number is not finite.
    """
    if len(ids) < min(num_top, logits_width):
        raise Disagreement(f"row has {len(ids)} candidates, top_logprobs is {num_top}")
    place = np.flatnonzero(ids == token)
    if len(place) == 0:
        raise Disagreement(f"drawn token {token} is not among {len(ids)} candidates")
    logprobs = logits.astype(np.float64) - log_sum_exp
    if not np.isfinite(logprobs[place[0]]) or np.isnan(logprobs).any():
        raise Disagreement("a log-probability is not finite")
    top = likeliest(ids, logprobs, num_top)
    return TokenLogprob(
        token, float(logprobs[place[0]]), [TopToken(*pair) for pair in zip(ids[top].tolist(), logprobs[top].tolist(), strict=True)]
    )
