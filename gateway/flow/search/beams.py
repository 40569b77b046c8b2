"""Beam search over log-probabilities, step by step. Pure: it says which sequences it wants to know more of, and is told what may follow them.

It finds what transformers' `generate(num_beams=...)` finds, up to the rounding of sums, and by the same rules: of all continuations of all beams the
likeliest stay beams; one that ends counts only if fewer than `width` are likelier; its score is the sum of its log-probabilities, that of its end
included, divided by its length, end included, to the power of the length penalty; what has the most tokens ends there. Equals go by the beam they continue,
then by rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from gateway.flow.search.kinds import Beams
from gateway.flow.search.steps import Candidate, Step


class Beam(NamedTuple):
    """A sequence that goes on."""

    steps: tuple[Step, ...]
    # Sum of its log-probabilities.
    total: float

    @property
    def token_ids(self) -> list[int]:
        """Its tokens."""
        return [step.chosen.token for step in self.steps]


class _Continuation(NamedTuple):
    """A beam and what may follow it."""

    total: float
    beam: Beam
    candidate: Candidate
    likeliest: Sequence[Candidate]


class Hypothesis(NamedTuple):
    """A sequence that has ended."""

    steps: tuple[Step, ...]
    score: float
    # Whether its last token is one that ends an answer; if not, it is as long as may be.
    stops: bool


class BeamState:
    """A beam search under way.

    Args:
        beams: what is looked for.
        max_tokens: most tokens of an answer.
        min_tokens: no answer ends before it has so many.
        stop_token_ids: tokens that end an answer.
        num_reported: how many of the likeliest tokens each step keeps.

    Attributes:
        beams: sequences that go on, the likeliest first.
        done: whether the search is over.
    """

    def __init__(self, beams: Beams, *, max_tokens: int, min_tokens: int, stop_token_ids: Collection[int], num_reported: int) -> None:
        self._asked = beams
        self._max_tokens = max_tokens
        self._min_tokens = min_tokens
        self._stops = frozenset(stop_token_ids)
        self._num_reported = num_reported
        self._length = 0
        self._ended: list[Hypothesis] = []
        self.beams = [Beam((), 0.0)]
        self.done = False

    @property
    def num_candidates(self) -> int:
        """How many of the likeliest tokens must be known behind each beam: as many as are kept, none of which is an end."""
        return self._asked.width + len(self._stops)

    def advance(self, candidates: Sequence[Sequence[Candidate]]) -> None:
        """Takes one more token in.

        Args:
            candidates: the likeliest tokens behind each beam, falling.
        """
        self._length += 1
        allowed = self._length > self._min_tokens
        found = [
            _Continuation(beam.total + one.logprob, beam, one, likeliest)
            for beam, likeliest in zip(self.beams, candidates, strict=True)
            for one in likeliest
            if allowed or one.token not in self._stops
        ]
        found.sort(key=lambda one: -one.total)
        is_last = self._length >= self._max_tokens
        ends = [is_last or one.candidate.token in self._stops for one in found]
        width = self._asked.width
        self._end([self._grown(one) for one, is_end in zip(found[:width], ends, strict=False) if is_end])
        self.beams = [self._grown(one) for one in [one for one, is_end in zip(found, ends, strict=True) if not is_end][:width]]
        self.done = not self.beams or self._is_decided()

    def best(self, n: int) -> list[Hypothesis]:
        """The best answers, the best first."""
        return self._ended[:n]

    def _grown(self, one: _Continuation) -> Beam:
        return Beam((*one.beam.steps, Step(one.candidate, one.likeliest[: self._num_reported])), one.total)

    def _end(self, beams: Sequence[Beam]) -> None:
        self._ended += [
            Hypothesis(beam.steps, self._score(beam.total, self._length), beam.steps[-1].chosen.token in self._stops) for beam in beams
        ]
        self._ended.sort(key=lambda one: -one.score)
        del self._ended[self._asked.width :]

    def _is_decided(self) -> bool:
        """Whether nothing better is to be expected; without as many answers as beams it is."""
        asked = self._asked
        if len(self._ended) < asked.width:
            return False
        if asked.early_stopping is True:
            return True
        length = self._max_tokens if asked.early_stopping == "never" and asked.length_penalty > 0 else self._length
        return self._score(self.beams[0].total, length) <= self._ended[-1].score

    def _score(self, total: float, length: int) -> float:
        return total / math.pow(length, self._asked.length_penalty)
