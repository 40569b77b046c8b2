"""Guesses how long an answer will be, from the answers that have ended; knows no text and no clock."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Protocol

from compute_svc.wire.request import Request


class LengthPredictor(Protocol):
    """Guesses how long answers will be, from those that have ended."""

    def predict(self, request: Request) -> int:
        """Answer tokens to expect, at least 1 and at most the request's max_tokens."""
        ...

    def observe(self, request: Request, answer_tokens: int) -> None:
        """An answer has ended with so many tokens, at least 1."""
        ...


class WindowedLengthPredictor:
    """A quantile of the latest answers to prompts of about the same length, tenant by tenant.

    A class holds the prompts whose lengths agree in their highest bit: 1, 2-3, 4-7, and so on. Each tenant has for each class a
    window of its latest answers' lengths; where it is not filled enough, all tenants together have one; where that one is not either,
    a fixed length is expected.

    A window and not a sketch of the whole past: lengths drift with the clients' prompts, a window forgets, and 64 numbers are less
    than most sketches hold. Of n lengths the one of rank ceil((n + 1) * quantile) is taken: if the next answer comes from where those
    in the window came from it is not longer with at least that probability, whatever the distribution (the bound of conformal
    prediction; Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005). The median is taken: too low a guess costs one
    extent more, too high a guess keeps runs from others, and who sorts requests by it wants the middle. Between 0.3 and 0.9 the number of
    extents was the same (tests/bench/scheduling/kv_memory.py, its third case).

    An answer that was cut off counts with the length it had: the guess is then low, and what it costs is extents.

    Memory: at most max_tenants * 64 classes * window lengths, and as many again as one tenant has; in practice a tenant has under 20.

    Args:
        quantile: Share of answers that are expected to be no longer than predicted, in (0, 1).
        window: Answers remembered in each class.
        min_answers: Answers a window must have to be believed; at most `window`.
        max_tenants: Tenants with windows of their own; one more takes the place of the one that was seen the longest ago.
        cold_start_tokens: Expected where nothing is known.

    Raises:
        ValueError: A value is out of its range.
    """

    def __init__(
        self, *, quantile: float = 0.5, window: int = 64, min_answers: int = 8, max_tenants: int = 256, cold_start_tokens: int = 256
    ) -> None:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile is {quantile}, it must be between 0 and 1")
        for name, value in (("min_answers", min_answers), ("max_tenants", max_tenants), ("cold_start_tokens", cold_start_tokens)):
            if value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")
        if window < min_answers:
            raise ValueError(f"window is {window}, it must be at least min_answers, {min_answers}")
        self._quantile = quantile
        self._window = window
        self._min_answers = min_answers
        self._max_tenants = max_tenants
        self._cold_start_tokens = cold_start_tokens
        self._everybody: dict[int, deque[int]] = {}
        # The one seen the longest ago comes first.
        self._tenants: OrderedDict[str, dict[int, deque[int]]] = OrderedDict()

    @property
    def num_tenants(self) -> int:
        """Tenants with windows of their own."""
        return len(self._tenants)

    def predict(self, request: Request) -> int:
        """Answer tokens to expect, at least 1 and at most the request's max_tokens."""
        prompt_class = _class_of(request)
        own = self._tenants.get(request.tenant)
        if own is not None:
            self._tenants.move_to_end(request.tenant)
        for windows in (own, self._everybody):
            lengths = windows.get(prompt_class) if windows is not None else None
            if lengths is not None and len(lengths) >= self._min_answers:
                return min(self._quantile_of(lengths), request.max_tokens)
        return min(self._cold_start_tokens, request.max_tokens)

    def observe(self, request: Request, answer_tokens: int) -> None:
        """An answer has ended with so many tokens, at least 1."""
        assert answer_tokens >= 1, "an answer without tokens says nothing about lengths"
        own = self._tenants.get(request.tenant)
        if own is None:
            if len(self._tenants) == self._max_tenants:
                self._tenants.popitem(last=False)
            own = self._tenants[request.tenant] = {}
        self._tenants.move_to_end(request.tenant)
        prompt_class = _class_of(request)
        for windows in (own, self._everybody):
            if prompt_class not in windows:
                windows[prompt_class] = deque(maxlen=self._window)
            windows[prompt_class].append(answer_tokens)

    def _quantile_of(self, lengths: deque[int]) -> int:
        rank = math.ceil((len(lengths) + 1) * self._quantile)
        return sorted(lengths)[min(rank, len(lengths)) - 1]


def _class_of(request: Request) -> int:
    return request.prompt.size.bit_length()
