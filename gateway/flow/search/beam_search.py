"""Beam search on replicas."""

from __future__ import annotations

from gateway.flow.generations.answer import Delta
from gateway.flow.generations.generation import Choice, Timeline, Usage
from gateway.flow.search.beams import BeamState
from gateway.flow.search.kinds import Beams
from gateway.flow.search.prober import Prober
from gateway.flow.search.writing import Decoders, Sequenced, write


class BeamSearch:
    """Searches for the answers to one prompt. Implements `Searching`.

    Args:
        beams: what is looked for.
        choice: the prompt, and when answers end.
        prober: asks what may follow.
        decoders: know special tokens.
        n: answers that are returned.
        top_logprobs: likeliest tokens the client sees with each token; None = no log-probabilities.
    """

    name = "beams"

    def __init__(self, beams: Beams, choice: Choice, *, prober: Prober, decoders: Decoders, n: int, top_logprobs: int | None) -> None:
        self._beams = beams
        self._choice = choice
        self._prober = prober
        self._decoders = decoders
        self._n = n
        self._top_logprobs = top_logprobs

    @property
    def num_requests(self) -> int:
        """See `Searching`."""
        return self._prober.num_probes

    async def run(self) -> list[Delta]:
        """See `Searching`."""
        stopping = self._choice.stopping
        state = BeamState(
            self._beams,
            max_tokens=stopping.max_tokens,
            min_tokens=stopping.min_tokens,
            stop_token_ids=stopping.stop_token_ids,
            num_reported=self._top_logprobs or 0,
        )
        most = max(state.num_candidates, self._top_logprobs or 0)
        while not state.done:
            probes = await self._prober.ask([beam.token_ids for beam in state.beams], most=most)
            state.advance([probe.candidates for probe in probes])
        found = [Sequenced(one.steps, one.stops) for one in state.best(self._n)]
        return await write(found, stopping, self._decoders, with_logprobs=self._top_logprobs is not None)

    def usage(self) -> Usage:
        """See `Searching`."""
        return self._prober.usage()

    def timeline(self) -> Timeline:
        """See `Searching`."""
        return self._prober.timeline()
