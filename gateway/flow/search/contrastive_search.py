"""Contrastive search (Su et al., 2022) on replicas: each next token is likely, and its hidden state unlike those of all tokens before it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from gateway.flow.generations.answer import Delta
from gateway.flow.generations.generation import Choice, Timeline, Usage
from gateway.flow.search.kinds import Contrast
from gateway.flow.search.prober import Prober
from gateway.flow.search.steps import Candidate, Step
from gateway.flow.search.vectors import Vectors
from gateway.flow.search.writing import Decoders, Sequenced, write
from triserve.v1 import compute_pb2


class ContrastiveSearch:
    """Searches for the answer to one prompt. Implements `Searching`.

    A first probe says what may follow the prompt and gives the hidden states of its tokens. Then each candidate is tried as the next token, side
    by side: its hidden state is compared with those before it, and the probe of the one that is chosen has said what may follow that.

    Args:
        contrast: what is looked for.
        choice: the prompt, and when the answer ends.
        prober: asks what may follow.
        decoders: know special tokens.
        hidden_size: numbers in a hidden state.
        top_logprobs: likeliest tokens the client sees with each token; None = no log-probabilities.
    """

    name = "contrastive"

    def __init__(
        self, contrast: Contrast, choice: Choice, *, prober: Prober, decoders: Decoders, hidden_size: int, top_logprobs: int | None
    ) -> None:
        self._contrast = contrast
        self._choice = choice
        self._prober = prober
        self._decoders = decoders
        self._hidden_size = hidden_size
        self._top_logprobs = top_logprobs

    @property
    def num_requests(self) -> int:
        """See `Searching`."""
        return self._prober.num_probes

    async def run(self) -> list[Delta]:
        """See `Searching`."""
        with_logprobs = self._top_logprobs is not None
        return await write([await self._search()], self._choice.stopping, self._decoders, with_logprobs=with_logprobs)

    async def _search(self) -> Sequenced:
        stopping, steps = self._choice.stopping, list[Step]()
        most = max(self._contrast.width, self._top_logprobs or 0)
        known = Vectors(len(self._choice.prompt.token_ids) + stopping.max_tokens, self._hidden_size)
        candidates = await self._read_prompt(known, most)
        while True:
            tried = candidates[: self._contrast.width]
            tokens = [step.chosen.token for step in steps]
            is_last = len(steps) + 1 == stopping.max_tokens
            # Behind the last token nothing is wanted, and there may be no room for one.
            probes = await self._prober.ask(
                [[*tokens, one.token] for one in tried], most=0 if is_last else most, hidden=compute_pb2.HIDDEN_STATES_LAST
            )
            likeness = await asyncio.to_thread(known.likeness, [probe.hidden for probe in probes])
            best = chosen(tried, likeness, self._contrast.alpha)
            steps.append(Step(tried[best], candidates[: self._top_logprobs or 0]))
            stops = tried[best].token in stopping.stop_token_ids
            if stops or is_last:
                return Sequenced(steps, stops)
            known.add(probes[best].hidden, num=1)
            candidates = probes[best].candidates

    async def _read_prompt(self, known: Vectors, most: int) -> Sequence[Candidate]:
        """What may follow the prompt, whose vectors become known."""
        (first,) = await self._prober.ask([()], most=most, hidden=compute_pb2.HIDDEN_STATES_ALL)
        # Of a long prompt that takes milliseconds.
        await asyncio.to_thread(known.add, first.hidden, num=len(self._choice.prompt.token_ids))
        return first.candidates

    def usage(self) -> Usage:
        """See `Searching`."""
        return self._prober.usage()

    def timeline(self) -> Timeline:
        """See `Searching`."""
        return self._prober.timeline()


def chosen(candidates: Sequence[Candidate], likeness: Sequence[float], alpha: float) -> int:
    """Index of the candidate that is taken; the likeliest among equals.

    Args:
        candidates: the likeliest tokens, falling.
        likeness: of the hidden state of each, the highest cosine to one before it.
        alpha: how much likeness counts.
    """
    scores = [(1 - alpha) * math.exp(one.logprob) - alpha * alike for one, alike in zip(candidates, likeness, strict=True)]
    return scores.index(max(scores))
