"""Where KV memory says no, and what it gives up before it does: to the page."""

from __future__ import annotations

import numpy as np
import pytest

from compute_svc.scheduler.base import RequestState
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.reservation import MaximumMemory, PredictedMemory
from tests.fakes.kv_requests import PAGE, admit, decode, kv_config, kv_request, lengths_of, table_of
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
def test_whether_a_request_fits_counts_what_it_shares_to_the_page(tokens: int, needed: int) -> None:
    memory = KvMemory(kv_config(8))
    prompt = np.arange(16)
    holder = kv_request(1, prompt[:8], max_tokens=4)
    admit(memory, holder)
    state = kv_request(2, prompt[:tokens], max_tokens=4)
    free = memory.num_available
    assert memory.could_admit(state, without=[], headroom=free - needed)
    assert not memory.could_admit(state, without=[], headroom=free - needed + 1)
    assert not memory.admit(state, headroom=free - needed + 1)
    assert (state.table, memory.num_available) == (None, free)
    assert memory.admit(state, headroom=free - needed)


@pytest.mark.parametrize(("make_memory", "pages"), [(KvMemory, (2, 2)), (PredictedMemory, (2, 5)), (MaximumMemory, (5, 5))])
def test_whether_a_request_fits_in_place_of_another_counts_the_others_pages_once(
    make_memory: type[KvMemory], pages: tuple[int, int]
) -> None:
    memory = make_memory(kv_config(12))
    other = kv_request(1, 8, max_tokens=13)
    admit(memory, other)
    admit(memory, kv_request(4, 8, max_tokens=1))
    assert lengths_of(memory, other) == pages
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
    for found in (2, 4):
        assert memory.admit(state, headroom=0)
        assert (state.num_computed, state.num_found_pages) == (found * PAGE, 2)
        state.num_computed = 16
        memory.keep_computed(state)
        memory.leave(state)


@pytest.mark.parametrize(("num_trusted", "left"), [(None, 4), (0, 0), (1, 1), (3, 3)])
def test_what_may_be_wrong_is_forgotten_behind_what_is_trusted(num_trusted: int | None, left: int) -> None:
    memory = KvMemory(kv_config(16))
    prompt = _cache(memory, 1, 12)
    state = kv_request(2, np.concatenate((prompt, np.arange(900, 905))), max_tokens=4)
    admit(memory, state)
    memory.leave(state, num_trusted=num_trusted)
    assert (memory.tree.num_pages, memory.num_available) == (left, 16)
    memory.assert_owned_once([])


@pytest.mark.parametrize(("tokens", "shared"), [(4, 0), (5, 1), (8, 1), (9, 2), (12, 2), (13, 3), (16, 3), (17, 3)])
def test_what_a_running_request_has_answered_is_shared_to_the_page(tokens: int, shared: int) -> None:
    memory = KvMemory(kv_config(16))
    first = kv_request(1, np.arange(4), max_tokens=12)
    admit(memory, first)
    for token in range(4, 15):
        first.append(token)
        assert memory.grow(first)
        first.num_computed += 1
    assert (first.num_computed, memory.tree.num_pages) == (15, 1)
    second = kv_request(2, np.arange(tokens), max_tokens=4)
    assert memory.admit(second, headroom=0)
    assert (table_of(second).shared, second.num_computed, memory.hit_tokens) == (shared, shared * PAGE, shared * PAGE)
    assert memory.shared_pages(second).tolist() == memory.tables.entries[table_of(first).row, :shared].tolist()
    assert memory.tree.num_pages == (3 if shared > 1 else 1), "all that it has computed, when anybody needs more than there is"
    memory.assert_owned_once([first, second])


def _grow_all(memory: KvMemory, states: list[RequestState]) -> bool:
    return memory.grow_all(np.array([table_of(state).row for state in states], dtype=np.int64))


def test_some_grow_by_a_page_each_or_none_does() -> None:
    memory = KvMemory(kv_config(8))
    states = [kv_request(number, 4, max_tokens=8) for number in (1, 2, 3)]
    for state in states:
        admit(memory, state)
    _cache(memory, 4, 12)
    assert memory.pool.num_free == 2
    assert _grow_all(memory, []) and _grow_all(memory, states), "the prefix cache gives up what is missing"
    assert (memory.pool.num_free, memory.tree.evictable_pages) == (0, 2)
    assert [table_of(state).length for state in states] == [2, 2, 2]
    memory.assert_owned_once(states)
    assert not _grow_all(memory, states)
    assert ([table_of(state).length for state in states], memory.num_available) == ([2, 2, 2], 2)
    assert _grow_all(memory, states[1:])
    assert ([table_of(state).length for state in states], memory.num_available) == ([2, 3, 3], 0)
    assert _grow_all(memory, []) and not _grow_all(memory, states[:1])
    memory.assert_owned_once(states)


def test_a_request_grows_when_its_page_is_full_and_not_before() -> None:
    memory = KvMemory(kv_config(2))
    state = kv_request(1, 3, max_tokens=9)
    admit(memory, state)
    assert decode(memory, state) and lengths_of(memory, state) == (1, 1)
    assert decode(memory, state) and lengths_of(memory, state) == (2, 2)
    assert all(decode(memory, state) for _ in range(3))
    assert not decode(memory, state)


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


def test_whole_pages_that_a_running_request_has_handed_over_are_shared_behind_those_in_the_cache() -> None:
    memory = KvMemory(kv_config(16))
    first, second, third = (kv_request(number, np.arange(14), max_tokens=4) for number in (1, 2, 3))
    assert memory.admit(first, headroom=0)
    for computed, other in ((4, second), (13, third)):
        first.num_computed = computed
        memory.keep_computed(first)
        assert memory.admit(other, headroom=0)
        assert (table_of(first).shared, table_of(other).shared, other.num_computed) == (
            computed // PAGE,
            computed // PAGE,
            computed // PAGE * PAGE,
        )
    memory.assert_owned_once([first, second, third])
