"""By the answer tokens that are still expected, and by age."""

from __future__ import annotations

from compute_svc.scheduler.base import RequestState
from compute_svc.scheduler.policies.ranked import RankedPolicy


class ShortestFirst(RankedPolicy):
    """Serves the shortest expected rest of an answer first; each token of it is worth so many seconds of waiting.

    What a request expects is looked at when it begins to wait, so one that was preempted comes back with what is left of it.
    Running ones keep their place until pages run out: then the longest go first.

    Nobody starves: the order is that of `submitted_at + remaining tokens * seconds`, and no request expects more than max_tokens. So it
    is passed only by those that come at most max_tokens * seconds later, and they are finitely many.

    Args:
        seconds_per_token: What one expected token costs.
    """

    overtakes = True

    def __init__(self, seconds_per_token: float = 0.1) -> None:
        if not seconds_per_token > 0:
            raise ValueError(f"seconds_per_token is {seconds_per_token}, it must be above 0")
        super().__init__()
        self._seconds_per_token = seconds_per_token

    def key(self, state: RequestState) -> float:
        """Seconds on the caller's clock: when the request would have come, were there nothing left to answer."""
        return state.request.submitted_at + state.remaining_tokens * self._seconds_per_token
