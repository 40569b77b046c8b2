"""Requests that hold KV pages without anything being computed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compute_svc.kv.page_table import PageTable
from compute_svc.kv.window import KvWindow
from compute_svc.scheduler.base import RequestState, SchedulerConfig
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.reservation import PredictedMemory
from compute_svc.wire.request import Request

PAGE = 4


def kv_config(num_pages: int, window: KvWindow | None = None) -> SchedulerConfig:
    """Sizes of a scheduler with so many small pages; steps of few tokens where there is a window."""
    return SchedulerConfig(
        page_size_tokens=PAGE,
        num_pages=num_pages,
        max_model_len_tokens=64,
        step_budget_tokens=64 if window is None else 8,
        max_running_requests=8,
        max_waiting_requests=8,
        window_tokens=None if window is None else window.tokens,
        chunk_tokens=PAGE if window is None else window.chunk_tokens,
    )


def kv_request(number: int, prompt: npt.NDArray[np.int64] | int, max_tokens: int, predicted: int | None = None) -> RequestState:
    """A request that waits.

    Args:
        number: Of the request, and its arrival.
        prompt: Its ids; a number = so many that no other request has.
        max_tokens: Most answer tokens.
        predicted: How many are expected; None = all.
    """
    ids = np.arange(prompt, dtype=np.int64) + 100 * number if isinstance(prompt, int) else prompt
    state = RequestState(Request(number, "", ids, np.empty(0, np.int64), max_tokens, 0.0), number)
    state.predicted_tokens = max_tokens if predicted is None else predicted
    return state


def table_of(state: RequestState) -> PageTable:
    """Of a request that has pages."""
    assert state.table is not None
    return state.table


def admit(memory: KvMemory, state: RequestState) -> None:
    """Gives a request pages and computes its tokens."""
    assert memory.admit(state, headroom=0)
    state.num_computed = state.num_tokens
    memory.keep_computed(state)


def decode(memory: KvMemory, state: RequestState, token: int = 7) -> bool:
    """Draws one token and computes it."""
    if state.num_computed == state.num_tokens:
        state.append(token)
    if not memory.grow(state):
        return False
    state.num_computed += 1
    return True


def lengths_of(memory: KvMemory, state: RequestState) -> tuple[int, int]:
    """Pages of a request, without its room and with it."""
    room = memory.room(state).size if isinstance(memory, PredictedMemory) else 0
    return table_of(state).length, table_of(state).length + room
