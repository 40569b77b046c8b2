"""Makes the searches of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.flow.generations.generation import Choice
from gateway.flow.generations.live_generation import LiveGeneration, Observer
from gateway.flow.limits import Limits
from gateway.flow.order import Order
from gateway.flow.search.beam_search import BeamSearch
from gateway.flow.search.best_of import BestOfSearch
from gateway.flow.search.kinds import Beams, BestOf, Contrast
from gateway.flow.search.prober import Prober
from gateway.flow.search.search_generation import Searching


class SearchMaker:
    """Makes searches.

    Args:
        order: of a call that asks for a search.
        limits: bounds on the request.
        observer: is told of retries.
        clock: seconds, never falling.
        answers: makes what draws all of its choices, not submitted.
    """

    def __init__(
        self, order: Order, *, limits: Limits, observer: Observer, clock: Callable[[], float], answers: Callable[[], LiveGeneration]
    ) -> None:
        self._order = order
        self._limits = limits
        self._observer = observer
        self._clock = clock
        self._answers = answers

    def searches(self) -> Sequence[Searching]:
        """One for each prompt, or one for all."""
        order, call = self._order, self._order.call
        top_logprobs = call.wishes.top_logprobs
        match call.search:
            case BestOf() as best_of:
                return [BestOfSearch(self._answers(), n=call.n, width=best_of.width, with_logprobs=top_logprobs is not None)]
            case Beams() as beams:
                return [
                    BeamSearch(beams, choice, prober=self._prober(choice), decoders=order.stages, n=call.n, top_logprobs=top_logprobs)
                    for choice in order.choices
                ]
            case Contrast() as contrast:
                # A gateway that makes no such search does without numpy.
                from gateway.flow.search.contrastive_search import ContrastiveSearch  # noqa: PLC0415

                return [
                    ContrastiveSearch(
                        contrast,
                        choice,
                        prober=self._prober(choice),
                        decoders=order.stages,
                        hidden_size=order.stages.model.hidden_size,
                        top_logprobs=top_logprobs,
                    )
                    for choice in order.choices
                ]
        raise AssertionError("the call asks for a search")

    def _prober(self, choice: Choice) -> Prober:
        return Prober(
            choice,
            call=self._order.call,
            replicas=self._order.stages,
            limits=self._limits,
            remaining_ms=self._order.remaining_ms,
            observer=self._observer,
            clock=self._clock,
        )
