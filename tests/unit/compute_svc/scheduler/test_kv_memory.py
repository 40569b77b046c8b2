"""Who has which page, promise by promise."""

from __future__ import annotations

import numpy as np
import pytest

from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.reservation import MaximumMemory, PredictedMemory
from tests.fakes.kv_requests import admit, decode, kv_config, kv_request, lengths_of, table_of


def test_a_request_grows_page_by_page() -> None:
    memory = KvMemory(kv_config(16))
    state = kv_request(1, 6, max_tokens=50, predicted=10)
    admit(memory, state)
    assert lengths_of(memory, state) == (2, 2)
    assert all(decode(memory, state) for _ in range(3))
    assert lengths_of(memory, state) == (3, 3)


@pytest.mark.parametrize("make_memory", [KvMemory, MaximumMemory, PredictedMemory])
def test_leaving_gives_everything_back(make_memory: type[KvMemory]) -> None:
    memory = make_memory(kv_config(16))
    state = kv_request(1, 6, max_tokens=30)
    admit(memory, state)
    memory.leave(state)
    memory.assert_owned_once([])
    assert memory.num_available == 16
    assert (memory.tables.entries == 0).all()


def test_whole_pages_are_shared_and_a_page_that_agrees_in_part_is_computed_again() -> None:
    memory = KvMemory(kv_config(16))
    cached = kv_request(1, np.array([1, 2, 3, 4, 5, 6, 7, 8, 9]), max_tokens=4)
    admit(memory, cached)
    memory.leave(cached)
    state = kv_request(2, np.array([1, 2, 3, 4, 5, 6, 0, 0]), max_tokens=4)
    assert memory.admit(state, headroom=0)
    assert (state.num_computed, table_of(state).shared) == (4, 1)
    assert (memory.looked_up_tokens, memory.hit_tokens) == (9 + 8, 4)


def test_a_page_that_a_running_request_has_filled_is_shared_with_who_needs_it() -> None:
    memory = KvMemory(kv_config(16))
    first = kv_request(1, np.array([1, 2, 3, 4, 5, 6]), max_tokens=10)
    other = kv_request(3, np.array([1, 2, 3, 4, 5, 6]), max_tokens=10)
    for state, tokens in ((first, (7, 8, 9)), (other, (6, 6, 6))):
        admit(memory, state)
        for token in tokens:
            assert decode(memory, state, token)
    assert memory.tree.num_pages == 1
    second = kv_request(2, np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), max_tokens=4)
    assert memory.admit(second, headroom=0)
    assert (table_of(first).shared, table_of(other).shared, table_of(second).shared, second.num_computed) == (2, 1, 2, 8)
    memory.assert_owned_once([first, other, second])


def test_what_was_not_computed_to_its_end_is_never_used() -> None:
    memory = KvMemory(kv_config(16))
    state = kv_request(1, 9, max_tokens=4)
    assert memory.admit(state, headroom=0)
    state.num_computed = 7
    memory.leave(state)
    assert (memory.tree.num_pages, memory.num_available, memory.pool.num_free) == (1, 16, 15)
