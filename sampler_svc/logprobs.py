"""Log-probabilities of the model's own distribution, before penalties and temperature, and which part of the text each belongs to."""

from __future__ import annotations

import codecs
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampler_svc.errors import Disagreement
from sampler_svc.text.detokenizer import Fed


class TopToken(NamedTuple):
    """One of the likeliest tokens."""

    token: int
    logprob: float


class TokenLogprob(NamedTuple):
    """One token and what else was likely in its place."""

    token: int
    logprob: float
    top: list[TopToken]  # falling
    named: Sequence[TopToken] = ()  # of ids that the request names, in its order
    rank: int | None = None  # of a token of the prompt but the first; 1 = the likeliest


class RowLogprobs(NamedTuple):
    """Log-probabilities that came with one row."""

    token: list[float]  # one for each token
    top_ids: list[int]  # as many for each token, one token's after the other's
    top: list[float]
    named: Sequence[float] = ()  # as many for each token

    def entries(self, tokens: Sequence[int], num_top: int, named: Sequence[int] = ()) -> list[TokenLogprob]:
        """Of each token, with so many of the likeliest and with named ids.

        Raises:
            Disagreement: there are not as many, or one is no number.
        """
        if len(self.top) != num_top * len(tokens):
            raise Disagreement(f"{len(tokens)} tokens come with {len(self.top)} of the likeliest, each is to have {num_top}")
        if len(self.named) != len(named) * len(tokens):
            raise Disagreement(f"{len(tokens)} tokens come with {len(self.named)} of named ids, each is to have {len(named)}")
        if not all(map(math.isfinite, self.token)) or not all(logprob < math.inf for logprob in (*self.top, *self.named)):
            raise Disagreement("a log-probability is NaN or infinite")
        top = [TopToken(*pair) for pair in zip(self.top_ids, self.top, strict=True)]
        of_named = tuple(TopToken(*pair) for pair in zip((*named,) * len(tokens), self.named, strict=True))
        return [
            TokenLogprob(
                token,
                logprob,
                top[index * num_top : (index + 1) * num_top],
                of_named[index * len(named) : (index + 1) * len(named)],
            )
            for index, (token, logprob) in enumerate(zip(tokens, self.token, strict=True))
        ]


class PromptPart(NamedTuple):
    """Log-probabilities of some tokens of a request's prompt."""

    request: int
    first_position: int
    token: list[float]  # one for each token
    ranks: list[int]
    top_ids: list[int]  # as many for each token
    top: list[float]

    def entries(self, tokens: Sequence[int], num_top: int) -> list[TokenLogprob]:
        """Of each token, with so many of the likeliest.

        Raises:
            Disagreement: there are not as many, or one is no number or no rank.
        """
        if len(tokens) != len(self.token) or len(self.top) != num_top * len(tokens):
            raise Disagreement(f"{len(self.token)} log-probabilities of the prompt and {len(self.top)} of the likeliest do not fit it")
        # A token of the prompt may be one that the model never gives.
        if not all(logprob < math.inf for logprob in (*self.token, *self.top)) or not all(self.ranks):
            raise Disagreement("a log-probability of the prompt is NaN or infinite, or a rank is 0")
        top = [TopToken(*pair) for pair in zip(self.top_ids, self.top, strict=True)]
        return [
            TokenLogprob(token, logprob, top[index * num_top : (index + 1) * num_top], rank=rank)
            for index, (token, logprob, rank) in enumerate(zip(tokens, self.token, self.ranks, strict=True))
        ]


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


def token_logprob(logits: NDArray[np.float32], token: int, num_top: int, named: Sequence[int] = ()) -> TokenLogprob:
    """The log-probabilities to report with a token.

    Args:
        logits: [width], as the model gave them, without NaN and +inf.
        token: the drawn one.
        num_top: how many of the likeliest to report.
        named: ids to report besides.
    """
    exact = logits.astype(np.float64)
    best = exact.max()
    reported = np.concatenate(([token], _likeliest(logits, num_top), np.array(named, dtype=np.int64)))
    with np.errstate(over="ignore"):  # two logits may be further apart than float32 reaches
        logprobs = (exact[reported] - (best + np.log(np.exp(exact - best).sum()))).astype(np.float32)
    others = [TopToken(*pair) for pair in zip(reported[1:].tolist(), logprobs[1:].tolist(), strict=True)]
    first_named = len(others) - len(named)
    return TokenLogprob(token, float(logprobs[0]), others[:first_named], tuple(others[first_named:]))


def _likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """By falling logit, then by rising id; all if there are fewer."""
    if count == 0:
        return np.zeros(0, np.intp)
    least = np.partition(logits, -min(count, len(logits)))[-min(count, len(logits))]
    at_least = np.flatnonzero(logits >= least)
    return at_least[np.argsort(-logits[at_least], kind="stable")][:count]
