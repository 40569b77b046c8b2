"""Which replica gets a request."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.clients.prefix_index import PrefixIndex, prompt_pages

# What a request that is decoding costs one that comes, in tokens of its prefill.
_TOKENS_PER_RUNNING = 32
# A replica is passed over while it has more than so many times the mean of all, however much of the prompt it holds: what everybody asks for is then
# computed once more elsewhere, and spreads.
_MOST_OF_MEAN = 1.25
_MORE_THAN_MEAN = 2


class Replica(Protocol):
    """What a policy may look at."""

    @property
    def in_flight(self) -> int:
        """Requests of this gateway that it has."""

    @property
    def others(self) -> int:
        """Requests of other gateways that it has, as of its last report."""

    @property
    def waiting(self) -> int:
        """Of all, those that wait for their first token."""

    @property
    def submitted(self) -> int:
        """Requests this gateway has given it since the start."""

    @property
    def mean_prefill_tokens(self) -> float:
        """What a request has to compute of its prompt there, on average."""

    @property
    def page_size_tokens(self) -> int:
        """Of its KV pages."""

    @property
    def prefixes(self) -> PrefixIndex:
        """What it holds."""


class ChoicePolicy(Protocol):
    """Chooses among replicas that are ready."""

    def best(self, replicas: Sequence[Replica], token_ids: Sequence[int], tenant: str) -> int:
        """Index of the best replica for a prompt of a tenant's; there are at least two."""


class LeastLoad:
    """The replica with the fewest requests; of equals the one that has been given the fewest so far."""

    def best(self, replicas: Sequence[Replica], token_ids: Sequence[int], tenant: str) -> int:
        """See `ChoicePolicy`."""
        return min(range(len(replicas)), key=lambda index: (_load(replicas[index]), replicas[index].submitted))


class Random:
    """Any replica, for comparison."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def best(self, replicas: Sequence[Replica], token_ids: Sequence[int], tenant: str) -> int:
        """See `ChoicePolicy`."""
        return self._random.randrange(len(replicas))


class LeastWork:
    """The replica where the first token costs least: what of the prompt is not cached there, and what waits there already.

    Of those that cost the same, the less loaded of two at random (power of two choices): gateways that know equally little do not all take the same
    one. A replica that has much more than its share is passed over.

    Args:
        clock: seconds, never falling.
        seed: of the choices between equals; None = another one each time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, seed: int | None = None) -> None:
        self._clock = clock
        self._random = random.Random(seed)

    def best(self, replicas: Sequence[Replica], token_ids: Sequence[int], tenant: str) -> int:
        """See `ChoicePolicy`. Whoever is chosen is expected to hold the prompt's pages from now on."""
        now = self._clock()
        pages = {size: prompt_pages(tenant, token_ids, size) for size in {replica.page_size_tokens for replica in replicas} if size}
        most = math.ceil(_MOST_OF_MEAN * sum(map(_load, replicas)) / len(replicas)) + _MORE_THAN_MEAN
        allowed = [index for index, replica in enumerate(replicas) if _load(replica) < most]
        costs = {index: self._cost(replicas[index], len(token_ids), pages, now) for index in allowed}
        least = min(costs.values())
        equals = [index for index in allowed if costs[index] <= least + replicas[index].page_size_tokens]
        if len(equals) > 2:
            equals = self._random.sample(equals, 2)
        chosen = min(equals, key=lambda index: (_load(replicas[index]), replicas[index].submitted))
        replicas[chosen].prefixes.expect(pages.get(replicas[chosen].page_size_tokens, ()), now)
        return chosen

    def _cost(self, replica: Replica, prompt_tokens: int, pages: dict[int, list[int]], now: float) -> float:
        size = replica.page_size_tokens
        cached = size * replica.prefixes.cached_pages(pages[size], now) if size else 0
        running = max(0, _load(replica) - replica.waiting)
        return prompt_tokens - cached + replica.waiting * replica.mean_prefill_tokens + running * _TOKENS_PER_RUNNING


def _load(replica: Replica) -> int:
    return replica.in_flight + replica.others
