"""By the tokens whose KV is cached already."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter

from compute_svc.scheduler.base import Plan, RequestState
from compute_svc.scheduler.policies.policy import Enter, Leave, Policy


def _arrival(state: RequestState) -> int:
    return state.arrival


class LongestPrefixFirst(Policy):
    """Admits the one with the most cached tokens, so that a prefix is used while it is there; by arrival among equals.

    Only the oldest `window` are looked at, so that a long queue costs no more than a short one.

    Nobody starves: after `max_passes` others were admitted before the oldest, the oldest is next. So a request that arrived behind n
    waiting ones is admitted after at most (n + 1) * (max_passes + 1) others.

    Args:
        window: How many of the oldest waiting requests are compared.
        max_passes: How many may be admitted before the oldest.
    """

    def __init__(self, *, window: int = 32, max_passes: int = 32) -> None:
        if window < 1 or max_passes < 0:
            raise ValueError(f"window is {window} and max_passes {max_passes}, they must be at least 1 and 0")
        self._window = window
        self._max_passes = max_passes
        self._waiting: list[RequestState] = []
        # How often each was passed while it was the oldest.
        self._passes: Counter[int] = Counter()
        # What the last comparison found, while nothing has changed.
        self._chosen: RequestState | None = None

    def enter(self, state: RequestState, why: Enter, now: float) -> None:
        insort(self._waiting, state, key=_arrival)
        self._chosen = None

    def leave(self, state: RequestState, why: Leave, now: float) -> None:
        place = bisect_left(self._waiting, state.arrival, key=_arrival)
        if self._waiting[place : place + 1] == [state]:
            del self._waiting[place]
        self._chosen = None
        if why is Leave.ADMITTED and self._waiting and self._waiting[0].arrival < state.arrival:
            self._passes[self._waiting[0].request.number] += 1
        elif why is Leave.ENDED:
            self._passes.pop(state.request.number, None)

    def first(self, now: float) -> RequestState | None:
        if not self._waiting:
            return None
        if self._passes[self._waiting[0].request.number] >= self._max_passes:
            return self._waiting[0]
        if self._chosen is None:
            self._chosen = max(self._waiting[: self._window], key=lambda state: (self.cached_tokens(state), -state.arrival))
        return self._chosen

    def account(self, plan: Plan) -> bool:
        self._chosen = None
        return False
