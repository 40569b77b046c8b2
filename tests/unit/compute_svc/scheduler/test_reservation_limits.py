"""What room in advance displaces, whom it is taken from, and where it lies: to the page."""

from __future__ import annotations

import numpy as np

from compute_svc.scheduler.base import RequestState
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.reservation import MaximumMemory, PredictedMemory, count_extents
from tests.fakes.kv_requests import admit, kv_config, kv_request, lengths_of, table_of


def _cache(memory: KvMemory, number: int, num_tokens: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Leaves a prompt of whole pages in the prefix cache; returns it."""
    state = kv_request(number, num_tokens, max_tokens=4)
    admit(memory, state)
    memory.leave(state)
    return state.request.prompt


def _extents(memory: KvMemory, state: RequestState) -> int:
    table = table_of(state)
    return count_extents(memory.tables.entries[table.row, : table.length])


def test_room_displaces_the_prefix_cache_until_an_eighth_is_free() -> None:
    memory = PredictedMemory(kv_config(38))
    for number, num_tokens in ((1, 60), (2, 60), (3, 24)):
        _cache(memory, number, num_tokens)
    admit(memory, kv_request(4, 8, max_tokens=1))
    assert (memory.pool.num_free, memory.tree.evictable_pages) == (0, 36)
    admit(memory, kv_request(5, 4, max_tokens=40))
    # 35 pages are nobody's then.
    assert (memory.pool.num_free, memory.tree.evictable_pages) == (4, 31)


def test_the_prefix_cache_is_not_displaced_for_a_run_that_is_there() -> None:
    memory = PredictedMemory(kv_config(24))
    _cache(memory, 1, 60)
    state = kv_request(2, 4, max_tokens=33)
    admit(memory, state)
    assert (lengths_of(memory, state), memory.tree.evictable_pages) == ((1, 9), 15)


def test_who_gets_no_room_displaces_nothing_for_a_run() -> None:
    memory = PredictedMemory(kv_config(8))
    states = [kv_request(number, 4, max_tokens=1) for number in range(1, 9)]
    for state in states:
        admit(memory, state)
    for state in states[::2]:
        memory.leave(state)
    memory.pool.release(memory.tree.evict(3))
    pieces = kv_request(9, 12, max_tokens=1)
    admit(memory, pieces)
    assert (lengths_of(memory, pieces), _extents(memory, pieces), memory.tree.evictable_pages) == ((3, 3), 3, 1)


def test_who_wants_no_room_displaces_nothing_whatever_pieces_it_gets() -> None:
    memory = PredictedMemory(kv_config(64))
    states = [kv_request(number, 4, max_tokens=1) for number in range(1, 9)]
    for state in states:
        admit(memory, state)
    for state in states[::2]:
        memory.leave(state)
    for number, num_tokens in ((9, 60), (10, 60), (11, 60), (12, 44)):
        cached = kv_request(number, num_tokens, max_tokens=1)
        admit(memory, cached)
        memory.leave(cached)
    memory.pool.release(memory.tree.evict(4))
    assert (memory.pool.num_free, memory.pool.longest_run, memory.tree.evictable_pages) == (4, 1, 56)
    admit(memory, kv_request(13, 12, max_tokens=1))
    assert (memory.pool.num_free, memory.tree.evictable_pages) == (1, 56)


def test_room_is_not_made_of_pieces() -> None:
    memory = PredictedMemory(kv_config(8))
    states = [kv_request(number, 4, max_tokens=1) for number in range(1, 9)]
    for state in states:
        assert memory.admit(state, headroom=0)
    for state in states[::2]:
        memory.leave(state)
    pieces = kv_request(9, 8, max_tokens=20)
    admit(memory, pieces)
    assert (lengths_of(memory, pieces), memory.pool.num_free) == ((2, 2), 2)


def test_nobodys_room_is_taken_while_there_are_other_pages() -> None:
    memory = PredictedMemory(kv_config(16))
    first, second = (kv_request(number, 4, max_tokens=16) for number in (1, 2))
    admit(memory, first)
    admit(memory, second)
    admit(memory, kv_request(3, 24, max_tokens=1))
    assert (lengths_of(memory, first), lengths_of(memory, second), memory.pool.num_allocatable) == ((1, 5), (1, 5), 0)
    admit(memory, kv_request(4, 8, max_tokens=1))
    assert (lengths_of(memory, first), lengths_of(memory, second)) == ((1, 5), (1, 3)), "no more is taken than is needed"


def test_the_prefix_cache_makes_room_for_the_maximum() -> None:
    memory = MaximumMemory(kv_config(16))
    for number in (1, 2):
        _cache(memory, number, 28)
    state = kv_request(3, 6, max_tokens=34)
    admit(memory, state)
    assert (lengths_of(memory, state), memory.tree.evictable_pages) == ((10, 10), 6)


def test_one_page_of_the_prefix_cache_is_given_up_where_that_is_an_eighth() -> None:
    memory = PredictedMemory(kv_config(14))
    _cache(memory, 1, 48)
    admit(memory, kv_request(2, 8, max_tokens=1))
    state = kv_request(3, 4, max_tokens=36)
    admit(memory, state)
    # One page for the prompt and one more, of the 11 that are nobody's then.
    assert (lengths_of(memory, state), memory.tree.evictable_pages) == ((1, 2), 10)


def test_no_more_of_the_prefix_cache_is_displaced_than_makes_a_run_long_enough() -> None:
    memory = PredictedMemory(kv_config(86))
    prompts = [_cache(memory, number, 60) for number in range(1, 6)]
    for prompt in prompts[:-1]:
        memory.tree.unlock(memory.tree.lock_match("", prompt).node)
    assert memory.pool.longest_run == 11
    state = kv_request(9, 12, max_tokens=37)
    admit(memory, state)
    assert (lengths_of(memory, state), _extents(memory, state), memory.tree.evictable_pages) == ((3, 12), 1, 74)


def test_who_has_room_grows_alone() -> None:
    memory = PredictedMemory(kv_config(16))
    state = kv_request(1, 4, max_tokens=8)
    admit(memory, state)
    assert memory.grow_all(np.empty(0, dtype=np.int64))
    assert not memory.grow_all(np.array([table_of(state).row]))
    assert lengths_of(memory, state) == (1, 3)


def test_who_has_the_pages_of_its_longest_answer_needs_no_headroom() -> None:
    memory = MaximumMemory(kv_config(8))
    state = kv_request(1, 4, max_tokens=29)
    assert memory.could_admit(state, without=[], headroom=9) and memory.admit(state, headroom=9)
    assert (lengths_of(memory, state), memory.num_available) == ((8, 8), 0)
    assert not memory.could_admit(kv_request(2, 1, max_tokens=1), without=[], headroom=0)
