"""Fair queueing between tenants by a virtual token counter (arXiv 2401.00588)."""

from __future__ import annotations

import heapq
from collections import Counter

from compute_svc.scheduler.base import Plan, RequestState
from compute_svc.scheduler.policies.policy import Enter, Leave, Policy
from compute_svc.scheduler.policies.ranked import RankedQueue


class FairTenants(Policy):
    """Admits from the tenant that has been served least; first come, first served within a tenant.

    Service is prompt tokens, charged at admission, and answer tokens, charged as they are computed, each by its weight. A tenant that
    begins to wait is lifted to the least counter of those that wait, or to that of the tenant admitted last if nobody waits, so that nobody
    saves up service by staying away.

    Nobody starves: a tenant's counter stands still while it waits and that of everyone who is served rises by at least a prompt each
    time, none begins below the least, and among equals the request that arrived first is next. So each other tenant is admitted only
    until its counter has passed, and each request waits for finitely many of its own tenant. When pages run out the one that arrived last
    gives up its own, whoever it belongs to: the first always proceeds.

    Args:
        prompt_weight: What a prompt token costs.
        answer_weight: What an answer token costs.
    """

    def __init__(self, *, prompt_weight: float = 1.0, answer_weight: float = 2.0) -> None:
        if not (prompt_weight > 0 and answer_weight > 0):
            raise ValueError(f"prompt_weight and answer_weight are {prompt_weight} and {answer_weight}, they must be above 0")
        self._prompt_weight = prompt_weight
        self._answer_weight = answer_weight
        self._counters: dict[str, float] = {}
        self._queues: dict[str, RankedQueue] = {}
        # (counter, arrival of the tenant's first, tenant): one entry for each waiting tenant, brought up to date when it comes up; entries
        # of tenants that wait no longer are dropped then.
        self._heap: list[tuple[float, int, str]] = []
        self._listed: set[str] = set()
        # Whoever was admitted last, and the most its counter was: where others begin while nobody waits.
        self._last: str | None = None
        self._floor = 0.0
        self._requests: Counter[str] = Counter()
        # (counter, tenant) of those that went away, one entry each, brought up to date when the least counter reaches it.
        self._away: list[tuple[float, str]] = []
        self._listed_away: set[str] = set()

    @property
    def num_tenants(self) -> int:
        """Tenants of which something is remembered: those that have requests, and those that were served more than the least."""
        return len(self._counters.keys() | self._listed)

    def enter(self, state: RequestState, why: Enter, now: float) -> None:
        tenant = state.request.tenant
        queue = self._queues.get(tenant)
        if why is Enter.ARRIVED:
            # Whoever comes back has begun before, so that its tenant is not lifted again.
            if queue is None:
                self._lift(tenant)
            self._requests[tenant] += 1
        if queue is None:
            queue = self._queues[tenant] = RankedQueue()
            if tenant not in self._listed:
                self._listed.add(tenant)
                heapq.heappush(self._heap, (self._counters[tenant], state.arrival, tenant))
        queue.add(state)

    def leave(self, state: RequestState, why: Leave, now: float) -> None:
        tenant = state.request.tenant
        queue = self._queues.get(tenant)
        if queue is not None and queue.remove(state) and not len(queue):
            del self._queues[tenant]
        if why is Leave.ADMITTED:
            self._last = tenant
            # What is computed again was paid for.
            if not state.preemptions:
                self._counters[tenant] += state.request.prompt.size * self._prompt_weight
        elif why is Leave.ENDED:
            self._forget(tenant)

    def first(self, now: float) -> RequestState | None:
        return self._next()

    def _next(self) -> RequestState | None:
        while self._heap:
            counter, arrival, tenant = self._heap[0]
            queue = self._queues.get(tenant)
            if queue is None:
                heapq.heappop(self._heap)
                self._listed.remove(tenant)
                continue
            state = queue.first()
            assert state is not None, "a queue without requests is dropped"
            if (self._counters[tenant], state.arrival) == (counter, arrival):
                return state
            heapq.heapreplace(self._heap, (self._counters[tenant], state.arrival, tenant))
        return None

    def account(self, plan: Plan) -> bool:
        for state in plan.decodes:
            self._counters[state.request.tenant] += self._answer_weight
        return False

    def _forget(self, tenant: str) -> None:
        self._requests[tenant] -= 1
        if not self._requests[tenant]:
            del self._requests[tenant]
            if tenant not in self._listed_away:
                self._listed_away.add(tenant)
                heapq.heappush(self._away, (self._counters[tenant], tenant))
        if self._requests:
            self._forget_away()
        else:
            for remembered in (self._counters, self._heap, self._listed, self._away, self._listed_away):
                remembered.clear()

    def _forget_away(self) -> None:
        """Who is away and no higher than the least would be lifted to it anyway."""
        least = self._least()
        while self._away and self._away[0][0] <= least:
            _, tenant = heapq.heappop(self._away)
            if tenant not in self._requests and self._counters[tenant] > least:
                heapq.heappush(self._away, (self._counters[tenant], tenant))
                continue
            self._listed_away.remove(tenant)
            if tenant not in self._requests:
                del self._counters[tenant]

    def _lift(self, tenant: str) -> None:
        least = self._least()
        self._counters[tenant] = max(self._counters.get(tenant, least), least)

    def _least(self) -> float:
        """The least counter of those that wait; if nobody does, that of whoever was admitted last."""
        if self._last is not None:
            self._floor = max(self._floor, self._counters.get(self._last, self._floor))
        waiting = self._next()
        return self._floor if waiting is None else self._counters[waiting.request.tenant]
