"""KV of requests that drop what lies before their window: how much they get, what they share and what becomes free."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compute_svc.kv.window import KvWindow
from compute_svc.scheduler.base import RequestState
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.reservation import MaximumMemory, PredictedMemory
from tests.fakes.kv_requests import PAGE, admit, kv_config, kv_request, lengths_of, table_of

# Three pages a chunk; a request that drops what it can has room for 5 + 2 * 12 + 8 tokens: 10 pages.
WINDOW = KvWindow(tokens=5, chunk_tokens=3 * PAGE)
SLIDING = 10


def _compute(memory: KvMemory, state: RequestState, num_tokens: int) -> None:
    """Computes tokens one by one, up to so many, dropping what can be dropped after each."""
    while state.num_computed < num_tokens:
        if state.num_computed == state.num_tokens:
            state.append(7)
        assert memory.grow(state)
        state.num_computed += 1
        memory.slide(state)


def _entries(memory: KvMemory, state: RequestState) -> list[int]:
    pages: list[int] = memory.tables.entries[table_of(state).row].tolist()
    return pages


@pytest.mark.parametrize(
    ("num_pages", "tokens", "pages"),
    [(24, 48, 12), (24, 49, SLIDING), (12, 40, 10), (12, 41, SLIDING), (SLIDING, 41, SLIDING)],
    ids=["half of the pages", "more than half", "what slides needs", "more than it needs", "of the fewest there may be"],
)
def test_a_request_slides_from_the_start_if_it_needs_more_than_half_of_the_pages(num_pages: int, tokens: int, pages: int) -> None:
    memory = KvMemory(kv_config(num_pages, WINDOW))
    state = kv_request(1, tokens, max_tokens=4)
    assert memory.wanted_pages(state) == pages
    assert memory.could_admit(state, without=[], headroom=num_pages - pages)
    assert not memory.could_admit(state, without=[], headroom=num_pages - pages + 1)
    assert memory.admit(state, headroom=num_pages - pages)
    assert (state.is_sliding, lengths_of(memory, state)) == (pages * PAGE < tokens, (pages, pages))


def test_without_a_window_a_request_gets_pages_for_all_its_tokens_however_many() -> None:
    memory = KvMemory(kv_config(16))
    state = kv_request(1, 60, max_tokens=4)
    admit(memory, state)
    assert (lengths_of(memory, state), state.is_sliding) == ((15, 15), False)
    memory.slide(state)
    assert (lengths_of(memory, state), state.dropped_tokens) == ((15, 15), 0)


def test_a_window_that_needs_more_pages_than_there_are_drops_nothing() -> None:
    memory = KvMemory(kv_config(SLIDING - 1, WINDOW))
    state = kv_request(1, 4, max_tokens=32)
    admit(memory, state)
    _compute(memory, state, 36)
    assert (state.dropped_tokens, lengths_of(memory, state)) == (0, (9, 9))


def test_the_pages_of_what_no_query_sees_take_the_tokens_to_come() -> None:
    memory = KvMemory(kv_config(24, WINDOW))
    state = kv_request(1, 4, max_tokens=60)
    assert memory.admit(state, headroom=0)
    _compute(memory, state, 27)
    before = _entries(memory, state)[:7]
    assert (state.dropped_tokens, state.is_sliding, lengths_of(memory, state)) == (0, False, (7, 7))
    # A query at 28 sees nothing before 24: the chunk behind the first can go.
    _compute(memory, state, 28)
    assert (state.dropped_tokens, state.is_sliding) == (12, True)
    assert _entries(memory, state)[:8] == [*before[:3], before[6], *before[3:6], 0]
    memory.slide(state)
    assert state.dropped_tokens == 12
    _compute(memory, state, 39)
    assert state.dropped_tokens == 12
    before = _entries(memory, state)[:7]
    _compute(memory, state, 40)
    assert (state.dropped_tokens, lengths_of(memory, state)) == (24, (7, 7))
    assert _entries(memory, state)[:8] == [*before[:3], before[6], *before[3:6], 0]
    memory.assert_owned_once([state])
    memory.leave(state)
    assert (state.dropped_tokens, state.num_computed, memory.num_available) == (0, 0, 24)


def test_two_chunks_that_can_go_at_once_go_at_once() -> None:
    memory = KvMemory(kv_config(24, WINDOW))
    state = kv_request(1, 41, max_tokens=8)
    assert memory.admit(state, headroom=0)
    before = _entries(memory, state)[:11]
    state.num_computed = 40
    memory.slide(state)
    assert state.dropped_tokens == 24
    assert _entries(memory, state)[:11] == [*before[:3], *before[9:11], *before[3:9]]


def test_what_is_shared_is_given_up_when_all_of_it_but_the_first_chunk_can_be() -> None:
    memory = KvMemory(kv_config(24, WINDOW))
    state = kv_request(1, 21, max_tokens=40)
    assert memory.admit(state, headroom=0)
    state.num_computed = 20
    memory.keep_computed(state)
    assert (table_of(state).shared, memory.tree.evictable_pages) == (5, 0)
    _compute(memory, state, 28)
    returns = memory.num_returns
    pages = _entries(memory, state)[:7]
    assert (state.dropped_tokens, lengths_of(memory, state), table_of(state).shared) == (12, (5, 5), 3)
    assert (memory.tree.evictable_pages, returns) == (2, 1)
    assert memory.tree.match_length("", state.tokens[:20]) == 20, "others find all of it"
    memory.assert_owned_once([state])
    # It shares no more than its first chunk from now on.
    memory.keep_computed(state)
    assert (_entries(memory, state)[:7], table_of(state).shared) == (pages, 3)
    memory.leave(state)
    memory.assert_owned_once([])
    assert memory.num_available == 24


def test_what_is_shared_stays_as_long_as_a_part_of_it_is_needed() -> None:
    memory = KvMemory(kv_config(24, WINDOW))
    state = kv_request(1, 29, max_tokens=30)
    assert memory.admit(state, headroom=0)
    state.num_computed = 28
    memory.keep_computed(state)
    memory.slide(state)
    assert (state.dropped_tokens, table_of(state).shared, state.is_sliding) == (0, 7, False)
    _compute(memory, state, 40)
    assert (state.dropped_tokens, table_of(state).shared, lengths_of(memory, state)) == (24, 3, (6, 6))
    assert memory.tree.evictable_pages == 4
    memory.assert_owned_once([state])


def test_a_request_that_slides_finds_and_leaves_no_more_than_its_first_chunk() -> None:
    memory = KvMemory(kv_config(24, WINDOW))
    prompt = np.arange(53)
    cached = kv_request(1, prompt[:28], max_tokens=4)
    admit(memory, cached)
    memory.leave(cached)
    state = kv_request(2, prompt, max_tokens=4)
    assert memory.could_admit(state, without=[], headroom=24 - SLIDING + 3 - 3)
    assert memory.admit(state, headroom=0)
    assert (state.num_computed, table_of(state).shared, lengths_of(memory, state)) == (12, 3, (SLIDING, SLIDING))
    state.num_computed = 32
    memory.keep_computed(state)
    assert table_of(state).shared == 3
    memory.leave(state)
    assert memory.tree.num_pages == 7


def test_a_request_that_slides_hands_over_its_first_chunk_once_it_is_computed() -> None:
    memory = KvMemory(kv_config(24, WINDOW))
    state = kv_request(1, 53, max_tokens=4)
    assert memory.admit(state, headroom=0)
    for computed, shared in ((8, 2), (16, 3), (32, 3)):
        state.num_computed = computed
        memory.keep_computed(state)
        assert (table_of(state).shared, memory.tree.num_pages) == (shared, shared)
    memory.assert_owned_once([state])


def test_what_is_to_be_pinned_drops_nothing() -> None:
    memory = KvMemory(kv_config(24, WINDOW))
    state = kv_request(1, 41, max_tokens=1)
    pins = RequestState(replace(state.request, pins=True), 1)
    admit(memory, pins)
    memory.slide(pins)
    assert (pins.dropped_tokens, lengths_of(memory, pins)) == (0, (11, 11))


@pytest.mark.parametrize("make_memory", [PredictedMemory, MaximumMemory])
def test_one_that_slides_has_no_room_in_advance(make_memory: type[KvMemory]) -> None:
    memory = make_memory(kv_config(24, WINDOW))
    state = kv_request(1, 49, max_tokens=12)
    assert memory.admit(state, headroom=0)
    assert lengths_of(memory, state) == (SLIDING, SLIDING)
    memory.assert_owned_once([state])


@pytest.mark.parametrize("make_memory", [PredictedMemory, MaximumMemory])
def test_room_in_advance_is_no_more_than_half_of_the_pages(make_memory: type[KvMemory]) -> None:
    memory = make_memory(kv_config(24, WINDOW))
    state = kv_request(1, 4, max_tokens=60)
    assert memory.admit(state, headroom=0)
    assert (lengths_of(memory, state)[1], state.is_sliding) == (12, False)
    assert memory.admit(kv_request(2, 49, max_tokens=12), headroom=0), "one that slides takes no more than what is left"


@pytest.mark.parametrize("make_memory", [KvMemory, PredictedMemory, MaximumMemory])
def test_one_that_cannot_drop_yet_what_it_shares_grows_beyond_half_of_the_pages(make_memory: type[KvMemory]) -> None:
    memory = make_memory(kv_config(24, WINDOW))
    state = kv_request(1, 48, max_tokens=12)
    assert memory.admit(state, headroom=0)
    state.num_computed = 48
    memory.keep_computed(state)
    state.append(7)
    assert memory.grow(state)
    assert lengths_of(memory, state) == (13, 13)
    memory.assert_owned_once([state])
