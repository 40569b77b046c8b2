"""The best of several answers that were drawn."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from gateway.flow.generations.answer import Delta
from gateway.flow.generations.generation import Timeline, Usage
from gateway.flow.generations.live_generation import LiveGeneration


class BestOfSearch:
    """Has answers made as any others, and takes the best. Implements `Searching`.

    Args:
        answers: with log-probabilities, as many to each prompt as to the next, one prompt's after the other's. Its reader does not stream.
        n: answers to a prompt that are returned.
        width: answers to a prompt that are made.
        with_logprobs: whether the client sees log-probabilities.
    """

    name = "best_of"

    def __init__(self, answers: LiveGeneration, *, n: int, width: int, with_logprobs: bool) -> None:
        self._answers = answers
        self._n = n
        self._width = width
        self._with_logprobs = with_logprobs

    @property
    def num_requests(self) -> int:
        """See `Searching`."""
        return len(self._answers.answers)

    async def run(self) -> list[Delta]:
        """See `Searching`. Raises what an answer fails with."""
        with contextlib.closing(self._answers):
            self._answers.submit()
            whole: dict[int, Delta] = {}
            while not self._answers.finished:
                # Whoever does not stream gets each answer in one piece.
                whole |= {piece.choice: piece.delta for piece in await self._answers.next()}
        return list(self._best(whole))

    def usage(self) -> Usage:
        """See `Searching`."""
        return self._answers.usage()

    def timeline(self) -> Timeline:
        """See `Searching`."""
        return self._answers.timeline()

    def _best(self, whole: dict[int, Delta]) -> Iterator[Delta]:
        for first in range(0, len(whole), self._width):
            ranked = sorted(range(first, first + self._width), key=lambda index: -mean_logprob(whole[index]))
            for index in ranked[: self._n]:
                yield whole[index] if self._with_logprobs else whole[index]._replace(logprobs=[])


def mean_logprob(answer: Delta) -> float:
    """The mean of the log-probabilities of an answer's text; an answer without any is worse than all others."""
    values = [one.logprob for one in answer.logprobs]
    return math.fsum(values) / len(values) if values else -math.inf
