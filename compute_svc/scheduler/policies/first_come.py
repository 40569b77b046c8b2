"""First come, first served."""

from __future__ import annotations

from compute_svc.scheduler.base import RequestState
from compute_svc.scheduler.policies.ranked import RankedPolicy


class FirstComeFirstServed(RankedPolicy):
    """Serves in the order of arrival.

    Nobody starves: only those that came before are served before, and the first one always proceeds.
    """

    def key(self, state: RequestState) -> float:
        """The same for all."""
        return 0.0
