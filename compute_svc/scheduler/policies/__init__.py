"""The orders in which requests can be served, by name."""

from __future__ import annotations

from collections.abc import Callable

from compute_svc.scheduler.policies.fair_tenants import FairTenants
from compute_svc.scheduler.policies.first_come import FirstComeFirstServed
from compute_svc.scheduler.policies.longest_prefix import LongestPrefixFirst
from compute_svc.scheduler.policies.multi_level import MultiLevelFeedback
from compute_svc.scheduler.policies.policy import Policy
from compute_svc.scheduler.policies.priority import PriorityFirst
from compute_svc.scheduler.policies.shortest_first import ShortestFirst

POLICIES: dict[str, Callable[[], Policy]] = {
    "fcfs": FirstComeFirstServed,
    "priority": PriorityFirst,
    "shortest-first": ShortestFirst,
    "multi-level": MultiLevelFeedback,
    "longest-prefix": LongestPrefixFirst,
    "fair-tenants": FairTenants,
}


def make_policy(name: str) -> Policy:
    """A policy without requests; each scheduler needs one of its own.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in POLICIES:
        raise ValueError(f"no policy is called {name!r}, the names are {', '.join(POLICIES)}")
    return POLICIES[name]()
