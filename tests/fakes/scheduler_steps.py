"""Steps of a small scheduler, with a model that draws token 7 for every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compute_svc.scheduler.base import Plan, SchedulerConfig
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request


def small_config(**changes: int) -> SchedulerConfig:
    """Small sizes of a scheduler, apart from `changes`."""
    sizes = {
        "page_size_tokens": 4,
        "num_pages": 16,
        "max_model_len_tokens": 64,
        "step_budget_tokens": 16,
        "max_running_requests": 4,
        "max_waiting_requests": 8,
    }
    return SchedulerConfig(**{**sizes, **changes})


def request_of(number: int, prompt: Sequence[int] | int, max_tokens: int = 8, **changes: Any) -> Request:
    """A greedy request; a number as prompt = so many ids that no other request has."""
    ids = np.array(prompt, dtype=np.int64) if isinstance(prompt, Sequence) else np.arange(prompt) + 100 * number
    return Request(number, changes.pop("tenant", ""), ids, changes.pop("generated", np.empty(0, np.int64)), max_tokens, 0.0, **changes)


def compute(scheduler: Scheduler, plan: Plan) -> list[int]:
    """What an engine does with a plan; every wanted row gives token 7. Returns the requests that got one."""
    assert [scheduler.memory.slots.states[slot] for slot in plan.rows.tolist()] == plan.decodes
    rows = [*plan.decodes, *(chunk.state for chunk in plan.prefills if chunk.completes)]
    scheduler.complete(plan)
    scheduler.assert_consistent()
    for state in rows:
        state.append(7)
        if state.num_tokens - state.request.prompt.size == state.request.max_tokens:
            scheduler.release(state.request.number)
    scheduler.assert_consistent()
    return [state.request.number for state in rows]


def step(scheduler: Scheduler) -> Plan:
    """One step, planned and computed."""
    plan = scheduler.step(0.0)
    compute(scheduler, plan)
    return plan


def chunks_of(plan: Plan) -> list[tuple[int, int, int]]:
    """Request, start and length of each prefill chunk."""
    return [(chunk.state.request.number, chunk.start, chunk.length) for chunk in plan.prefills]


def decodes_of(plan: Plan) -> list[int]:
    """Requests of the decode rows."""
    return [state.request.number for state in plan.decodes]
