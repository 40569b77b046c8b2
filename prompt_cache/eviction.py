"""Which entry of a full store goes first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

EvictionPolicy = Literal["lru", "lfu", "fifo", "cost"]

K = TypeVar("K", bound=Hashable)

# Outdated places of an order above which it is cleaned, besides as many as there are entries.
_SLACK = 64


class Use(NamedTuple):
    """What a policy knows of an entry."""

    # When it was added and when it was last added or hit, in accesses to the store.
    added_at: int
    used_at: int
    # How often it was hit, and the adding.
    num_uses: int
    # What one hit saves.
    saved_tokens: int
    num_bytes: int


class Policy(Protocol):
    """Ranks entries: the lowest goes first; of equals, the one whose last use is longest ago."""

    def rank(self, use: Use) -> float:
        """The rank of an entry that was just added or hit; it keeps it until the next time."""

    def evicted(self, rank: float) -> None:
        """Says that an entry of this rank went because the store was full."""


class LeastRecentlyUsed:
    """The one that was not used for longest goes first."""

    def rank(self, use: Use) -> float:
        """See `Policy`."""
        return use.used_at

    def evicted(self, rank: float) -> None:
        """Nothing ages."""


class FirstIn:
    """The one that was added first goes first, however often it is hit."""

    def rank(self, use: Use) -> float:
        """See `Policy`."""
        return use.added_at

    def evicted(self, rank: float) -> None:
        """Nothing ages."""


class LeastOftenUsed:
    """The one that was used least often goes first.

    What was popular once does not stay for ever (dynamic ageing): uses count on top of the rank of the last entry that went.
    """

    def __init__(self) -> None:
        self._age = 0.0

    def rank(self, use: Use) -> float:
        """See `Policy`."""
        return self._age + self._worth(use)

    def evicted(self, rank: float) -> None:
        """Makes what comes and what is used from now on as good as what went, and better."""
        self._age = max(self._age, rank)

    def _worth(self, use: Use) -> float:
        return use.num_uses


class LeastSaved(LeastOftenUsed):
    """The one that saves the fewest tokens per byte goes first (greedy-dual size frequency): small, costly, popular answers stay."""

    def _worth(self, use: Use) -> float:
        return use.num_uses * use.saved_tokens / use.num_bytes


_POLICIES: Mapping[EvictionPolicy, Callable[[], Policy]] = {
    "lru": LeastRecentlyUsed,
    "lfu": LeastOftenUsed,
    "fifo": FirstIn,
    "cost": LeastSaved,
}


def policy_named(name: EvictionPolicy) -> Policy:
    """A policy for one store.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in _POLICIES:
        raise ValueError(f"the eviction policy is {name!r}, known are {', '.join(_POLICIES)}")
    return _POLICIES[name]()


class Order(Generic[K]):
    """The keys of a store by rank: a heap in which outdated places stay until they come up, or are too many.

    Args:
        policy: its own, as it ages with what goes from here.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[tuple[float, int, K]] = []
        self._places: dict[K, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def place(self, key: K, use: Use) -> None:
        """Ranks a key that was just added or hit."""
        place = self._places[key] = (self._policy.rank(use), use.used_at)
        heapq.heappush(self._heap, (*place, key))
        if len(self._heap) > 2 * len(self._places) + _SLACK:
            self._heap = [(*place, one) for one, place in self._places.items()]
            heapq.heapify(self._heap)

    def remove(self, key: K) -> None:
        """Forgets a key."""
        del self._places[key]

    def next_to_go(self) -> K:
        """The key that goes now; there must be one, and the caller removes it."""
        while True:
            rank, used_at, key = heapq.heappop(self._heap)
            if self._places.get(key) == (rank, used_at):
                self._policy.evicted(rank)
                return key
