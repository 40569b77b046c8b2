"""By the priority of the request, and by age."""

from __future__ import annotations

from compute_svc.scheduler.base import RequestState
from compute_svc.scheduler.policies.ranked import RankedPolicy


class PriorityFirst(RankedPolicy):
    """Serves the lower priority first; one step of priority is worth so many seconds of waiting.

    Nobody starves: the order is that of `submitted_at + priority * seconds`, which never changes, so a request is passed only by those
    that come at most (its priority - theirs) * seconds later, and they are finitely many. A running request is preempted for one
    of a better priority only while that one is ahead in this order too.

    Args:
        seconds_per_level: What one step of priority is worth.
    """

    overtakes = True
    preempts = True

    def __init__(self, seconds_per_level: float = 10.0) -> None:
        if not seconds_per_level > 0:
            raise ValueError(f"seconds_per_level is {seconds_per_level}, it must be above 0")
        super().__init__()
        self._seconds_per_level = seconds_per_level

    def key(self, state: RequestState) -> float:
        """Seconds on the caller's clock: when the request would have come, had it no priority."""
        return state.request.submitted_at + state.request.priority * self._seconds_per_level

    def yields(self, running: RequestState, waiting: RequestState) -> bool:
        return running.request.priority > waiting.request.priority
