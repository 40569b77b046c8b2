"""Skip-join multi-level feedback queues: short answers first, without knowing which are short (FastServe, arXiv 2305.05920)."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from compute_svc.scheduler.base import Plan, RequestState
from compute_svc.scheduler.policies.policy import Enter, Leave, Policy
from compute_svc.scheduler.policies.ranked import RankedQueue


@dataclass(slots=True)
class _Service:
    """Where a request is, what it has had there, and since when it has got nothing."""

    level: int
    tokens: float
    waits_since: float
    was_served: bool = False


class MultiLevelFeedback(Policy):
    """Serves the upper levels first, and in each the one that entered it first.

    A request enters the first level whose quantum covers its prompt, skipping those it would only fall through. A level's quantum used
    up, it falls to the next, where the quantum is twice as large; so what has been short so far passes what has been long. The batch or
    the pages full, a running request is preempted for a waiting one of a better level; its KV stays in the prefix cache as long as
    there is room.

    Nobody starves: one that waits, and has got no answer token for `max_wait_s` since it began to wait, goes to the end of the first
    level with a fresh quantum. Only those that are in that level already are served before it, it gives way to nobody there, and it has a
    whole quantum of answer tokens before it can fall again, because tokens that are computed again are not charged. So a request gets a
    quantum at least each time it has waited so long. A prompt under way is not held up by others that come.

    Args:
        num_levels: Levels; in the last there is no quantum.
        first_quantum_tokens: Answer tokens of the first level.
        prompt_weight: What a prompt token costs, in answer tokens.
        max_wait_s: Seconds without an answer token after which a waiting request is promoted.
    """

    preempts = True

    def __init__(
        self, *, num_levels: int = 6, first_quantum_tokens: int = 16, prompt_weight: float = 1 / 16, max_wait_s: float = 300.0
    ) -> None:
        for name, value in (("num_levels", num_levels), ("first_quantum_tokens", first_quantum_tokens)):
            if value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")
        if not (prompt_weight >= 0 and max_wait_s > 0):
            raise ValueError(f"prompt_weight is {prompt_weight} and max_wait_s {max_wait_s}, they must be at least and above 0")
        self._quanta = [float(first_quantum_tokens << level) for level in range(num_levels - 1)]
        self._prompt_weight = prompt_weight
        self._max_wait_s = max_wait_s
        self._services: dict[int, _Service] = {}
        self._queue = RankedQueue()
        self._waiting: dict[int, RequestState] = {}
        # (since, number) of all that wait, a heap; stale when the request does not wait since then.
        self._waits: list[tuple[float, int]] = []
        self._entries = 0

    def enter(self, state: RequestState, why: Enter, now: float) -> None:
        number = state.request.number
        if why is Enter.ARRIVED:
            cost = state.num_given * self._prompt_weight
            level = next((level for level, quantum in enumerate(self._quanta) if cost <= quantum), len(self._quanta))
            self._services[number] = _Service(level, cost, now)
            self._rank(state, level)
        service = self._services[number]
        if service.was_served:
            service.waits_since, service.was_served = now, False
        heapq.heappush(self._waits, (service.waits_since, number))
        self._waiting[number] = state
        self._queue.add(state)

    def leave(self, state: RequestState, why: Leave, now: float) -> None:
        self._waiting.pop(state.request.number, None)
        self._queue.remove(state)
        if why is Leave.ENDED:
            del self._services[state.request.number]

    def first(self, now: float) -> RequestState | None:
        self._promote(now)
        return self._queue.first()

    def account(self, plan: Plan) -> bool:
        has_fallen = False
        for state in plan.decodes:
            service = self._services[state.request.number]
            service.was_served = True
            service.tokens += 1
            if service.level < len(self._quanta) and service.tokens >= self._quanta[service.level]:
                service.level += 1
                service.tokens = 0
                self._rank(state, service.level)
                has_fallen = True
        return has_fallen

    def yields(self, running: RequestState, waiting: RequestState) -> bool:
        return running.rank[0] > waiting.rank[0]

    def _rank(self, state: RequestState, level: int) -> None:
        self._entries += 1
        state.rank = (float(level), self._entries)

    def _promote(self, now: float) -> None:
        while self._waits:
            since, number = self._waits[0]
            state = self._waiting.get(number)
            if state is not None and self._services[number].waits_since == since:
                if now - since < self._max_wait_s:
                    return
                service = self._services[number]
                if service.level:
                    service.level, service.tokens = 0, 0
                    self._rank(state, 0)
                    self._queue.add(state)
            heapq.heappop(self._waits)
