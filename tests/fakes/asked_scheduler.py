"""A small scheduler under a policy, with a model that draws token 1 for every row."""

from __future__ import annotations

import numpy as np

from compute_svc.scheduler.base import Plan, RequestState, SchedulerConfig
from compute_svc.scheduler.policies.policy import Policy
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request


class Asked:
    """A scheduler, and a number for each request."""

    def __init__(self, policy: Policy, *, running: int = 1, pages: int = 64, budget: int = 32) -> None:
        self.scheduler = Scheduler(
            SchedulerConfig(
                page_size_tokens=4,
                num_pages=pages,
                max_model_len_tokens=128,
                step_budget_tokens=budget,
                max_running_requests=running,
                max_waiting_requests=100,
            ),
            policy,
        )
        self.count = 0
        self.ended: list[int] = []

    def ask(
        self, prompt: int | list[int] = 4, max_tokens: int = 4, *, at: float = 0.0, tenant: str = "", priority: int = 0
    ) -> RequestState:
        """Puts a request in the queue; a number as prompt = so many ids that no other request has."""
        self.count += 1
        ids = np.array(prompt) if isinstance(prompt, list) else np.arange(prompt) + 1000 * self.count
        request = Request(self.count, tenant, ids, np.empty(0, np.int64), max_tokens, at, priority=priority)
        return self.scheduler.submit(request)

    def step(self, now: float = 0.0) -> Plan:
        """One step, planned and computed."""
        plan = self.scheduler.step(now)
        rows = [*plan.decodes, *(chunk.state for chunk in plan.prefills if chunk.completes)]
        self.scheduler.complete(plan)
        for state in rows:
            state.append(1)
            if state.position == state.request.max_tokens:
                self.scheduler.release(state.request.number)
                self.ended.append(state.request.number)
        self.scheduler.assert_consistent()
        return plan

    def run(self, *, step_s: float = 0.0) -> list[int]:
        """Steps until all requests have ended; returns them in the order of their ends."""
        now = 0.0
        while self.scheduler.num_running or self.scheduler.num_waiting:
            self.step(now)
            now += step_s
        return self.ended
