"""Who has which page: the three ways to reserve, what is taken back, and what is copied."""

from __future__ import annotations

import numpy as np
import pytest

from compute_svc.scheduler.kv_memory import KvMemory, Reservation
from tests.fakes.kv_requests import admit, decode, kv_config, kv_request, lengths_of, table_of


def test_a_predicted_answer_lies_behind_its_prompt() -> None:
    memory = KvMemory(kv_config(16))
    state = kv_request(1, 6, max_tokens=50, predicted=10)
    admit(memory, state)
    assert lengths_of(state) == (2, 4)
    assert memory.num_available == memory.pool.num_free == 14
    for _ in range(9):
        assert decode(memory, state)
    assert (lengths_of(state), table_of(state).num_extents) == ((4, 4), 1)
    memory.assert_owned_once([state])


def test_room_comes_from_the_shortest_run_that_holds_prompt_and_answer() -> None:
    memory = KvMemory(kv_config(16))
    states = [kv_request(number, 8, max_tokens=8, predicted=5) for number in range(1, 4)]
    for state in states:
        admit(memory, state)
    memory.leave(states[0])
    memory.pool.release(memory.tree.evict(16))
    # Free: three pages in front, seven behind the last.
    other = kv_request(9, 5, max_tokens=20, predicted=8)
    admit(memory, other)
    assert table_of(other).owned.tolist() + table_of(other).room.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "capacities"),
    # The last token's KV is not stored: pages for 4 + 7 tokens, then 4 + 15, 4 + 31, and no more than 4 + 39.
    [pytest.param(4, [3, 5, 9, 11], id="inside a page"), pytest.param(1, [2, 4, 8, 10], id="at the end of a page")],
)
def test_an_answer_that_outgrows_its_prediction_gets_as_much_again(prompt: int, capacities: list[int]) -> None:
    memory = KvMemory(kv_config(16))
    state = kv_request(1, prompt, max_tokens=40, predicted=8)
    admit(memory, state)
    seen = {lengths_of(state)[1]}
    for _ in range(39):
        assert decode(memory, state)
        seen.add(lengths_of(state)[1])
    assert sorted(seen) == capacities


def test_no_more_than_max_tokens_is_reserved() -> None:
    memory = KvMemory(kv_config(16))
    state = kv_request(1, 4, max_tokens=5, predicted=9)
    admit(memory, state)
    assert lengths_of(state) == (1, 2)


def test_one_page_extents_reserve_nothing() -> None:
    memory = KvMemory(kv_config(16), Reservation.PAGES)
    state = kv_request(1, 6, max_tokens=50, predicted=10)
    admit(memory, state)
    assert lengths_of(state) == (2, 2)
    assert all(decode(memory, state) for _ in range(3))
    assert lengths_of(state) == (3, 3)


def test_the_maximum_is_reserved_and_cannot_be_taken() -> None:
    memory = KvMemory(kv_config(16), Reservation.MAXIMUM)
    first = kv_request(1, 6, max_tokens=34, predicted=1)
    admit(memory, first)
    assert lengths_of(first) == (2, 10)
    assert memory.num_available == 6
    assert not memory.admit(kv_request(2, 4, max_tokens=22), headroom=0)
    admit(memory, kv_request(3, 4, max_tokens=21))
    assert memory.num_available == 0
    assert all(decode(memory, first) for _ in range(34))


def test_room_is_taken_from_the_latest_arrival_and_nobody_is_refused_for_it() -> None:
    memory = KvMemory(kv_config(10))
    first = kv_request(1, 4, max_tokens=16)
    second = kv_request(2, 4, max_tokens=16)
    admit(memory, first)
    admit(memory, second)
    assert (lengths_of(first), lengths_of(second), memory.num_available) == ((1, 5), (1, 5), 8)
    third = kv_request(3, 8, max_tokens=16)
    admit(memory, third)
    assert (lengths_of(first), lengths_of(second), lengths_of(third)) == ((1, 5), (1, 3), (2, 2))
    assert memory.admit(kv_request(4, 16, max_tokens=16), headroom=2)
    assert (lengths_of(first), lengths_of(second), memory.num_available) == ((1, 3), (1, 1), 2)


def test_the_room_of_an_earlier_arrival_is_taken_before_anybody_is_preempted() -> None:
    memory = KvMemory(kv_config(6))
    first = kv_request(1, 4, max_tokens=16)
    second = kv_request(2, 4, max_tokens=16)
    admit(memory, first)
    admit(memory, second)
    assert (lengths_of(first), lengths_of(second)) == ((1, 5), (1, 1))
    assert all(decode(memory, second) for _ in range(16))
    assert (lengths_of(first), lengths_of(second)) == ((1, 1), (5, 5))
    assert not decode(memory, first)


def test_room_is_taken_before_the_prefix_cache() -> None:
    memory = KvMemory(kv_config(8))
    cached = kv_request(1, 12, max_tokens=4)
    admit(memory, cached)
    memory.leave(cached)
    holder = kv_request(2, 4, max_tokens=12)
    admit(memory, holder)
    assert (lengths_of(holder), memory.tree.num_pages) == ((1, 4), 3)
    admit(memory, kv_request(3, 16, max_tokens=4))
    assert (lengths_of(holder), memory.tree.num_pages) == ((1, 1), 3)


def test_room_displaces_only_a_part_of_the_prefix_cache() -> None:
    memory = KvMemory(kv_config(32))
    for number in (1, 2):
        cached = kv_request(number, 60, max_tokens=4)
        admit(memory, cached)
        memory.leave(cached)
    filler = kv_request(3, 8, max_tokens=1)
    admit(memory, filler)
    assert (memory.pool.num_free, memory.tree.num_pages) == (0, 30)
    state = kv_request(4, 4, max_tokens=40)
    admit(memory, state)
    # 29 pages are nobody's then; an eighth of them may be free.
    assert memory.pool.num_free == 3
    assert memory.tree.num_pages == 26
    memory.assert_owned_once([filler, state])


def test_leaving_gives_the_room_back() -> None:
    for reservation in Reservation:
        memory = KvMemory(kv_config(16), reservation)
        state = kv_request(1, 6, max_tokens=30)
        admit(memory, state)
        memory.leave(state)
        memory.assert_owned_once([])
        assert memory.num_available == 16
        assert (memory.tables.entries == 0).all()


def test_a_page_that_agrees_in_part_is_copied() -> None:
    memory = KvMemory(kv_config(16))
    cached = kv_request(1, np.array([1, 2, 3, 4, 5, 6, 7, 8, 9]), max_tokens=4)
    admit(memory, cached)
    memory.leave(cached)
    state = kv_request(2, np.array([1, 2, 3, 4, 5, 6, 0, 0]), max_tokens=4)
    assert memory.admit(state, headroom=0)
    assert (state.num_computed, table_of(state).shared) == (6, 1)
    ((source, target),) = memory.take_copies()
    assert (source, target) == (int(memory.tree.lock_match("", cached.tokens[:8]).pages[1]), int(table_of(state).owned[0]))
    assert (memory.looked_up_tokens, memory.hit_tokens, memory.copied_tokens) == (9 + 8, 6, 2)


def test_the_page_a_running_request_writes_is_copied_too() -> None:
    memory = KvMemory(kv_config(16))
    first = kv_request(1, np.array([1, 2, 3, 4, 5, 6]), max_tokens=10)
    admit(memory, first)
    for token in (7, 8, 9):
        assert decode(memory, first, token)
    second = kv_request(2, np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), max_tokens=4)
    assert memory.admit(second, headroom=0)
    assert (table_of(first).shared, table_of(second).shared, second.num_computed) == (2, 2, 9)
    assert memory.take_copies() == [(int(table_of(first).owned[0]), int(table_of(second).owned[0]))]
    memory.assert_owned_once([first, second])


def test_what_is_to_be_copied_to_one_that_leaves_is_forgotten() -> None:
    memory = KvMemory(kv_config(16))
    cached = kv_request(1, np.array([1, 2, 3, 4, 5]), max_tokens=4)
    admit(memory, cached)
    memory.leave(cached)
    state = kv_request(2, np.array([1, 2, 3, 0]), max_tokens=4)
    assert memory.admit(state, headroom=0)
    memory.leave(state)
    assert memory.take_copies() == []
