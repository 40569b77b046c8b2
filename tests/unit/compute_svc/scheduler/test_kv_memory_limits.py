"""Where KV memory says no, and what it gives up before it does: to the page."""

from __future__ import annotations

import numpy as np
import pytest

from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.reservation import MaximumMemory, PredictedMemory, count_extents
from tests.fakes.kv_requests import admit, decode, kv_config, kv_request, lengths_of, table_of
from triserve.rpc.errors import Overloaded


def _cache(memory: KvMemory, number: int, num_tokens: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Leaves a prompt of whole pages in the prefix cache; returns it."""
    state = kv_request(number, num_tokens, max_tokens=4)
    admit(memory, state)
    memory.leave(state)
    return state.request.prompt


def test_a_new_memory_has_all_its_pages_and_has_given_nothing_back() -> None:
    memory = KvMemory(kv_config(16))
    assert (memory.num_available, memory.num_returns) == (16, 0)
    assert (memory.looked_up_tokens, memory.hit_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("tokens", "needed"),
    # The last token is computed in any case, so a page that ends with it is needed though it is cached.
    [(8, 1), (9, 1), (12, 1), (13, 2)],
)
def test_whether_a_request_fits_counts_what_it_shares_to_the_token(tokens: int, needed: int) -> None:
    memory = KvMemory(kv_config(8))
    prompt = np.arange(16)
    holder = kv_request(1, prompt[:8], max_tokens=4)
    admit(memory, holder)
    memory.keep_computed(holder)
    state = kv_request(2, prompt[:tokens], max_tokens=4)
    free = memory.num_available
    assert memory.could_admit(state, without=[], headroom=free - needed)
    assert not memory.could_admit(state, without=[], headroom=free - needed + 1)
    assert not memory.admit(state, headroom=free - needed + 1)
    assert (state.table, memory.num_available) == (None, free)
    assert memory.admit(state, headroom=free - needed)


@pytest.mark.parametrize("make_memory", [MaximumMemory, KvMemory, PredictedMemory])
def test_whether_a_request_fits_in_place_of_another_counts_the_others_pages_once(make_memory: type[KvMemory]) -> None:
    memory = make_memory(kv_config(12))
    other = kv_request(1, 8, max_tokens=13)
    admit(memory, other)
    admit(memory, kv_request(4, 8, max_tokens=1))
    assert lengths_of(memory, other)[1] == (2 if make_memory is KvMemory else 5)
    fits, does_not = (kv_request(number, tokens, max_tokens=1) for number, tokens in ((2, 40), (3, 41)))
    assert memory.could_admit(fits, without=[other], headroom=0)
    assert not memory.could_admit(does_not, without=[other], headroom=0)
    assert not memory.could_admit(fits, without=[], headroom=0)


def test_what_two_requests_share_becomes_free_when_both_leave() -> None:
    memory = KvMemory(kv_config(24))
    for number in (8, 9):
        admit(memory, kv_request(number, 36, max_tokens=1))
    prompt = np.arange(9)
    states = [kv_request(number, prompt, max_tokens=4) for number in (1, 2)]
    for state in states:
        admit(memory, state)
        memory.keep_computed(state)
    assert (memory.pool.num_free, memory.num_available) == (2, 2)
    state = kv_request(3, 24, max_tokens=4)
    assert not memory.could_admit(kv_request(5, 16, max_tokens=4), without=states[:1], headroom=0)
    assert memory.could_admit(kv_request(6, 12, max_tokens=4), without=states[:1], headroom=0)
    assert memory.could_admit(state, without=states, headroom=0)
    assert memory.pin("", prompt[:4])
    assert not memory.could_admit(state, without=states, headroom=0)
    assert memory.could_admit(kv_request(4, 20, max_tokens=4), without=states, headroom=0)


@pytest.mark.parametrize(
    ("num_pages", "limit"),
    [(40, 20), (31, 15), (24, 8), (16, 0)],
    ids=["half", "half of an odd number", "the longest request fits beside", "none"],
)
def test_so_many_pages_can_be_pinned_and_not_one_more(num_pages: int, limit: int) -> None:
    memory = KvMemory(kv_config(num_pages))
    assert memory.max_pinned_pages == limit
    prompts = [_cache(memory, number, 4) for number in range(1, limit + 2)]
    for prompt in prompts[:limit]:
        assert memory.pin("", prompt[:4])
    with pytest.raises(Overloaded, match=f"{limit} pages are pinned and {limit + 1} would be, the limit is {limit}: half") as raised:
        memory.pin("", prompts[limit][:4])
    assert raised.value.field == "token_ids"
    assert not limit or memory.pin("", prompts[0][:4]), "what is pinned costs nothing"


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


def test_room_is_not_made_of_pieces() -> None:
    memory = PredictedMemory(kv_config(8))
    states = [kv_request(number, 4, max_tokens=1) for number in range(1, 9)]
    for state in states:
        admit(memory, state)
    for state in states[::2]:
        memory.leave(state)
    memory.pool.release(memory.tree.evict(4))
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


def test_pages_computed_twice_are_kept_once() -> None:
    memory = KvMemory(kv_config(16))
    states = [kv_request(number, np.arange(10), max_tokens=4) for number in (1, 2)]
    for state in states:
        assert memory.admit(state, headroom=0)
    for state in states:
        state.num_computed = 10
        memory.keep_computed(state)
    assert (memory.num_available, memory.num_returns, memory.tree.num_pages) == (16 - 4, 1, 2)
    assert states[0].table is not None and states[1].table is not None
    assert states[0].table.shared_pages.tolist() == memory.shared_pages(states[1]).tolist()
    memory.assert_owned_once(states)


def test_whoever_was_refused_can_see_that_pages_came_back() -> None:
    memory = KvMemory(kv_config(40))
    state = kv_request(1, 8, max_tokens=4)
    admit(memory, state)
    assert memory.num_returns == 0
    memory.leave(state)
    assert memory.num_returns == 1
    assert memory.pin("", state.request.prompt[:4])
    assert memory.num_returns == 1
    assert memory.unpin("", state.request.prompt[:4]) and memory.num_returns == 2
    assert not memory.unpin("", state.request.prompt[:4]) and memory.num_returns == 2


def test_a_request_counts_as_found_what_was_cached_whenever_it_was_admitted() -> None:
    memory = KvMemory(kv_config(16))
    prompt = _cache(memory, 1, 12)
    state = kv_request(2, np.concatenate((prompt, np.arange(900, 905))), max_tokens=4)
    assert memory.admit(state, headroom=0)
    assert state.num_found_pages == 3
    memory.leave(state)
    memory.pool.release(memory.tree.evict(1))
    for found in (2, 2):
        assert memory.admit(state, headroom=0)
        assert state.num_found_pages == found
        state.num_computed = 16
        memory.leave(state)


@pytest.mark.parametrize(("num_trusted", "left"), [(None, 4), (0, 0), (1, 1)])
def test_what_may_be_wrong_is_forgotten_behind_what_is_trusted(num_trusted: int | None, left: int) -> None:
    memory = KvMemory(kv_config(16))
    prompt = _cache(memory, 1, 12)
    state = kv_request(2, np.concatenate((prompt, np.arange(900, 905))), max_tokens=4)
    admit(memory, state)
    memory.leave(state, num_trusted=num_trusted)
    assert (memory.tree.num_pages, memory.num_available) == (left, 16)
    memory.assert_owned_once([])


def test_a_request_grows_when_its_page_is_full_and_not_before() -> None:
    memory = KvMemory(kv_config(2))
    state = kv_request(1, 3, max_tokens=9)
    admit(memory, state)
    assert decode(memory, state) and lengths_of(memory, state) == (1, 1)
    assert decode(memory, state) and lengths_of(memory, state) == (2, 2)
    assert all(decode(memory, state) for _ in range(3))
    assert not decode(memory, state)


def test_a_whole_page_that_a_running_request_has_computed_is_shared() -> None:
    memory = KvMemory(kv_config(16))
    first, second = (kv_request(number, np.concatenate((np.arange(5), np.arange(3) + 10 * number)), max_tokens=4) for number in (1, 2))
    assert memory.admit(first, headroom=0)
    first.num_computed = 5
    assert memory.admit(second, headroom=0)
    assert (table_of(first).shared, table_of(second).shared, second.num_computed) == (1, 1, 4)
    memory.assert_owned_once([first, second])


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
    assert (lengths_of(memory, state), count_extents(memory.tables.entries[table_of(state).row, :3]), memory.tree.evictable_pages) == (
        (3, 12),
        1,
        74,
    )


def test_of_a_request_that_gives_way_its_own_pages_become_free_and_what_it_alone_shares() -> None:
    memory = KvMemory(kv_config(12))
    admit(memory, kv_request(1, 8, max_tokens=1))
    other = kv_request(2, 13, max_tokens=4)
    assert memory.admit(other, headroom=0)
    other.num_computed = 4
    memory.keep_computed(other)
    assert (table_of(other).shared, table_of(other).owned.size, memory.num_available) == (1, 3, 6)
    assert memory.could_admit(kv_request(3, 40, max_tokens=1), without=[other], headroom=0)
    assert not memory.could_admit(kv_request(4, 41, max_tokens=1), without=[other], headroom=0)


def test_whole_pages_that_a_running_request_has_computed_are_shared_behind_those_in_the_cache() -> None:
    memory = KvMemory(kv_config(16))
    first, second = (kv_request(number, np.arange(14), max_tokens=4) for number in (1, 2))
    assert memory.admit(first, headroom=0)
    first.num_computed = 4
    memory.keep_computed(first)
    first.num_computed = 12
    assert memory.admit(second, headroom=0)
    assert (table_of(first).shared, table_of(second).shared, second.num_computed) == (3, 3, 12)
    memory.assert_owned_once([first, second])
