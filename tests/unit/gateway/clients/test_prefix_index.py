"""What a replica holds is known as it tells it, within a bound that all replicas share."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.clients.prefix_index import BYTES_PER_PAGE, PageBudget, PrefixIndex, prompt_pages
from triserve.rpc.page_hash import page_hashes, tenant_hash

PAGES = st.integers(0, 30)


class Indexes(RuleBasedStateMachine):
    """Two replicas' indexes against plain sets, with room for twenty pages together."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = PageBudget(20 * BYTES_PER_PAGE + 1)
        self.indexes = [PrefixIndex(self.budget), PrefixIndex(self.budget)]
        self.told: list[set[int]] = [set(), set()]

    @rule(which=st.integers(0, 1), removed=st.lists(PAGES, max_size=6), stored=st.lists(PAGES, max_size=6))
    def change(self, which: int, removed: list[int], stored: list[int]) -> None:
        self.indexes[which].change(removed=removed, stored=stored)
        self.told[which] = (self.told[which] - set(removed)) | set(stored)

    @rule(which=st.integers(0, 1))
    def clear(self, which: int) -> None:
        self.indexes[which].clear()
        self.told[which] = set()

    @invariant()
    def nothing_is_known_that_was_not_told_and_no_room_is_lost(self) -> None:
        for index, told in zip(self.indexes, self.told, strict=True):
            assert index._pages <= told
            assert index._pages == told or index.dropped
        assert sum(map(len, self.indexes)) + self.budget.free == 20 and self.budget.free >= 0


TestIndexes = Indexes.TestCase


def test_the_cached_prefix_is_as_long_as_its_leading_pages_are_known() -> None:
    index = PrefixIndex(PageBudget(1 << 20))
    pages = list(range(100, 110))
    for count in range(11):
        index.clear()
        index.change(removed=[], stored=pages[:count])
        assert index.cached_pages(pages, 0.0) == count
    assert index.cached_pages([], 0.0) == 0


def test_what_is_expected_counts_until_it_is_told_or_too_old() -> None:
    index = PrefixIndex(PageBudget(1 << 20))
    index.expect([1, 2], now=0.0)
    assert index.cached_pages([1, 2, 3], now=9.0) == 2
    assert index.cached_pages([1, 2, 3], now=11.0) == 0
    index.change(removed=[], stored=[1])
    assert index.cached_pages([1, 2, 3], now=11.0) == 1


def test_more_than_a_bound_is_not_expected() -> None:
    index = PrefixIndex(PageBudget(1 << 20))
    index.expect(range(20_000), now=0.0)
    assert len(index._expected) == 8192
    assert index.cached_pages([0], now=0.0) == 0 and index.cached_pages([19_999], now=0.0) == 1


def test_pages_are_named_as_replicas_name_them_and_a_prompt_s_last_token_is_always_computed() -> None:
    prompt = list(range(1, 10))
    assert prompt_pages("acme", prompt, 4) == page_hashes(
        tenant_hash("acme"), b"".join(token.to_bytes(4, "little") for token in prompt[:8]), 4
    )
    assert len(prompt_pages("acme", prompt[:8], 4)) == 1 and prompt_pages("acme", [1], 4) == []
    assert prompt_pages("acme", prompt, 4) != prompt_pages("zorg", prompt, 4)


def test_a_prompt_of_any_length_is_bounded_work() -> None:
    assert len(prompt_pages("acme", [1] * 200_000, 16)) == 4096
