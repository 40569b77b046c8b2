"""Which replica gets a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Replica(Protocol):
    """What a policy may look at."""

    @property
    def in_flight(self) -> int:
        """Requests of this gateway that it has."""

    @property
    def others(self) -> int:
        """Requests of other gateways that it has, as of its last report."""

    @property
    def submitted(self) -> int:
        """Requests this gateway has given it since the start."""


class ChoicePolicy(Protocol):
    """Chooses among replicas that are ready."""

    def best(self, replicas: Sequence[Replica], token_ids: Sequence[int], tenant: str) -> int:
        """Index of the best replica for a prompt of a tenant's; there are at least two."""


class LeastLoad:
    """The replica with the fewest requests; of equals the one that has been given the fewest so far."""

    def best(self, replicas: Sequence[Replica], token_ids: Sequence[int], tenant: str) -> int:
        """See `ChoicePolicy`."""
        load = [(replica.in_flight + replica.others, replica.submitted) for replica in replicas]
        return min(range(len(replicas)), key=load.__getitem__)
