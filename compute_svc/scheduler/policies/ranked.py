"""Requests that wait, in the order of a number: what most policies are made of."""

from __future__ import annotations

import heapq

from compute_svc.scheduler.base import RequestState
from compute_svc.scheduler.policies.policy import Enter, Leave, Policy


class RankedQueue:
    """Requests in the order of their rank, which may change while they are here if they are added again.

    Removing leaves the heap's entry behind; such entries are passed over when they come up and swept when they are the most.
    """

    def __init__(self) -> None:
        self._states: dict[int, RequestState] = {}
        self._heap: list[tuple[tuple[float, int], int]] = []

    def __len__(self) -> int:
        return len(self._states)

    def add(self, state: RequestState) -> None:
        """Adds a request, or moves it to its new place."""
        number = state.request.number
        self._states[number] = state
        if len(self._heap) > 2 * len(self._states) + 64:
            self._heap = [(waiting.rank, number) for number, waiting in self._states.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (state.rank, number))

    def remove(self, state: RequestState) -> bool:
        """Takes a request out; returns whether it was here."""
        return self._states.pop(state.request.number, None) is not None

    def first(self) -> RequestState | None:
        """The request of the lowest rank; None if there is none."""
        while self._heap:
            rank, number = self._heap[0]
            state = self._states.get(number)
            if state is not None and state.rank == rank:
                return state
            heapq.heappop(self._heap)
        return None


class RankedPolicy(Policy):
    """Serves by a number that does not change while a request waits or runs, and by arrival among equals."""

    def __init__(self) -> None:
        self._queue = RankedQueue()

    def key(self, state: RequestState) -> float:
        """The number; lower is sooner."""
        raise NotImplementedError

    def enter(self, state: RequestState, why: Enter, now: float) -> None:
        state.rank = (self.key(state), state.arrival)
        self._queue.add(state)

    def leave(self, state: RequestState, why: Leave, now: float) -> None:
        self._queue.remove(state)

    def first(self, now: float) -> RequestState | None:
        return self._queue.first()
