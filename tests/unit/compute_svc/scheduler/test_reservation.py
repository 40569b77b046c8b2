"""Pages reserved in advance: for the answer that is expected, and for the longest one."""

from __future__ import annotations

import pytest

from compute_svc.scheduler.reservation import MaximumMemory, PredictedMemory, count_extents
from tests.fakes.kv_requests import admit, decode, kv_config, kv_request, lengths_of, table_of


def test_a_predicted_answer_lies_behind_its_prompt() -> None:
    memory = PredictedMemory(kv_config(16))
    state = kv_request(1, 6, max_tokens=50, predicted=10)
    admit(memory, state)
    assert lengths_of(memory, state) == (2, 4)
    assert memory.num_available == memory.pool.num_free == 14
    for _ in range(9):
        assert decode(memory, state)
    assert (lengths_of(memory, state), count_extents(memory.tables.entries[table_of(state).row, :4])) == ((4, 4), 1)
    memory.assert_owned_once([state])


def test_room_comes_from_the_shortest_run_that_holds_prompt_and_answer() -> None:
    memory = PredictedMemory(kv_config(16))
    states = [kv_request(number, 8, max_tokens=8, predicted=5) for number in range(1, 4)]
    for state in states:
        admit(memory, state)
    memory.leave(states[0])
    memory.pool.release(memory.tree.evict(16))
    # Free: three pages in front, seven behind the last.
    other = kv_request(9, 5, max_tokens=20, predicted=8)
    admit(memory, other)
    assert memory.tables.entries[table_of(other).row, : table_of(other).length].tolist() + memory.room(other).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "capacities"),
    # The last token's KV is not stored: pages for 4 + 7 tokens, then 4 + 15, 4 + 31, and no more than 4 + 39.
    [pytest.param(4, [3, 5, 9, 11], id="inside a page"), pytest.param(1, [2, 4, 8, 10], id="at the end of a page")],
)
def test_an_answer_that_outgrows_its_prediction_gets_as_much_again(prompt: int, capacities: list[int]) -> None:
    memory = PredictedMemory(kv_config(16))
    state = kv_request(1, prompt, max_tokens=40, predicted=8)
    admit(memory, state)
    seen = {lengths_of(memory, state)[1]}
    for _ in range(39):
        assert decode(memory, state)
        seen.add(lengths_of(memory, state)[1])
    assert sorted(seen) == capacities


def test_no_more_than_max_tokens_is_reserved() -> None:
    memory = PredictedMemory(kv_config(16))
    state = kv_request(1, 4, max_tokens=5, predicted=9)
    admit(memory, state)
    assert lengths_of(memory, state) == (1, 2)


def test_the_maximum_is_reserved_and_cannot_be_taken() -> None:
    memory = MaximumMemory(kv_config(16))
    first = kv_request(1, 6, max_tokens=34, predicted=1)
    admit(memory, first)
    assert table_of(first).length == 10
    assert memory.num_available == 6
    assert not memory.admit(kv_request(2, 4, max_tokens=22), headroom=0)
    admit(memory, kv_request(3, 4, max_tokens=21))
    assert memory.num_available == 0
    assert all(decode(memory, first) for _ in range(34))


def test_room_is_taken_from_the_latest_arrival_and_nobody_is_refused_for_it() -> None:
    memory = PredictedMemory(kv_config(10))
    first = kv_request(1, 4, max_tokens=16)
    second = kv_request(2, 4, max_tokens=16)
    admit(memory, first)
    admit(memory, second)
    assert (lengths_of(memory, first), lengths_of(memory, second), memory.num_available) == ((1, 5), (1, 5), 8)
    third = kv_request(3, 8, max_tokens=16)
    admit(memory, third)
    assert (lengths_of(memory, first), lengths_of(memory, second), lengths_of(memory, third)) == ((1, 5), (1, 3), (2, 2))
    assert memory.admit(kv_request(4, 16, max_tokens=16), headroom=2)
    assert (lengths_of(memory, first), lengths_of(memory, second), memory.num_available) == ((1, 3), (1, 1), 2)


def test_the_room_of_an_earlier_arrival_is_taken_before_anybody_is_preempted() -> None:
    memory = PredictedMemory(kv_config(6))
    first = kv_request(1, 4, max_tokens=16)
    second = kv_request(2, 4, max_tokens=16)
    admit(memory, first)
    admit(memory, second)
    assert (lengths_of(memory, first), lengths_of(memory, second)) == ((1, 5), (1, 1))
    assert all(decode(memory, second) for _ in range(16))
    assert (lengths_of(memory, first), lengths_of(memory, second)) == ((1, 1), (5, 5))
    assert not decode(memory, first)


def test_room_is_taken_before_the_prefix_cache() -> None:
    memory = PredictedMemory(kv_config(8))
    cached = kv_request(1, 12, max_tokens=4)
    admit(memory, cached)
    memory.leave(cached)
    holder = kv_request(2, 4, max_tokens=12)
    admit(memory, holder)
    assert (lengths_of(memory, holder), memory.tree.evictable_pages) == ((1, 4), 3)
    admit(memory, kv_request(3, 16, max_tokens=4))
    assert (lengths_of(memory, holder), memory.tree.evictable_pages) == ((1, 1), 3)


def test_room_displaces_only_a_part_of_the_prefix_cache() -> None:
    memory = PredictedMemory(kv_config(32))
    for number in (1, 2):
        cached = kv_request(number, 60, max_tokens=4)
        admit(memory, cached)
        memory.leave(cached)
    filler = kv_request(3, 8, max_tokens=1)
    admit(memory, filler)
    assert (memory.pool.num_free, memory.tree.evictable_pages) == (0, 30)
    state = kv_request(4, 4, max_tokens=40)
    admit(memory, state)
    # 29 pages are nobody's then; an eighth of them may be free.
    assert memory.pool.num_free == 3
    assert memory.tree.evictable_pages == 26
    memory.assert_owned_once([filler, state])
