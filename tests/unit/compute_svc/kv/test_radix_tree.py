"""The prefix cache against a naive model: a dictionary of every cached prefix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from compute_svc.kv.page_pool import PagePool, Pages
from compute_svc.kv.radix_node import Node
from compute_svc.kv.radix_tree import PartialPage, Prefix, RadixTree
from triserve.rpc.page_hash import page_hashes, tenant_hash

PAGE = 2


def _tokens(*ids: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(ids, dtype=np.int64)


def _put(tree: RadixTree, tokens: np.ndarray[tuple[int], np.dtype[np.int64]], pages: list[int], tenant: str = "a") -> Prefix:
    """Inserts a whole prefix from the root and leaves it locked."""
    prefix = tree.lock_match(tenant, tokens)
    found = prefix.pages.size
    return tree.insert(prefix.node, tokens[found * PAGE :], np.array(pages[found:], dtype=np.int64))


def test_an_empty_tree_matches_nothing() -> None:
    tree = RadixTree(PAGE)
    prefix = tree.lock_match("a", _tokens(1, 2, 3, 4))
    assert prefix.pages.size == 0
    tree.unlock(prefix.node)
    assert list(tree.nodes()) == []


def test_a_prefix_is_found_in_whole_pages_only() -> None:
    tree = RadixTree(PAGE)
    _put(tree, _tokens(1, 2, 3, 4, 5, 6), [10, 11, 12])
    assert tree.lock_match("a", _tokens(1, 2, 3, 4, 5)).pages.tolist() == [10, 11]
    assert tree.lock_match("a", _tokens(1, 2, 3, 9, 5, 6)).pages.tolist() == [10]
    assert tree.lock_match("a", _tokens(1)).pages.tolist() == []


def test_another_tenants_prefix_is_never_found() -> None:
    tree = RadixTree(PAGE)
    _put(tree, _tokens(1, 2), [10], tenant="a")
    assert tree.lock_match("b", _tokens(1, 2)).pages.size == 0


def test_a_page_of_other_tokens_is_never_found_however_like_they_are() -> None:
    tree = RadixTree(PAGE)
    # Two ids that a mixing hash of 64 bits takes for the same page when both are changed.
    _put(tree, _tokens(14319, 10106), [10])
    for other in ((14318, 10178), (10106, 14319), (14319, 10107)):
        assert tree.lock_match("a", _tokens(*other)).pages.size == 0


def test_inserting_what_is_there_returns_the_trees_own_pages() -> None:
    tree = RadixTree(PAGE)
    root = tree.lock_match("a", _tokens(1, 2, 3, 4)).node
    _put(tree, _tokens(1, 2, 7, 8), [10, 11])
    longer = tree.insert(root, _tokens(1, 2, 3, 4), np.array([20, 21]))
    assert longer.pages.tolist() == [10, 21]
    assert tree.num_pages == 3


def test_evicting_never_touches_a_locked_prefix() -> None:
    tree = RadixTree(PAGE)
    held = _put(tree, _tokens(1, 2, 3, 4), [10, 11])
    free = _put(tree, _tokens(1, 2, 5, 6), [10, 12])
    tree.unlock(free.node)
    assert tree.evictable_pages == 1
    assert tree.evict(5).tolist() == [12]
    assert tree.lock_match("a", _tokens(1, 2, 3, 4)).pages.tolist() == [10, 11]
    assert held.node.locks > 0


def test_eviction_takes_the_least_recently_used_end_first() -> None:
    tree = RadixTree(PAGE)
    for base, pages in ((1, [10, 11]), (5, [12, 13])):
        tree.unlock(_put(tree, _tokens(base, 2, 3, 4), pages).node)
    tree.unlock(tree.lock_match("a", _tokens(1, 2, 3, 4)).node)
    assert tree.evict(1).tolist() == [13]
    assert tree.evict(2).tolist() == [12, 11]
    assert tree.lock_match("a", _tokens(1, 2, 3, 4)).pages.tolist() == [10]


def test_a_tenant_without_pages_is_forgotten() -> None:
    tree = RadixTree(PAGE)
    tree.unlock(_put(tree, _tokens(1, 2), [10]).node)
    tree.evict(1)
    assert list(tree.nodes()) == []


def test_a_holder_keeps_its_prefix_when_another_request_splits_it() -> None:
    tree = RadixTree(PAGE)
    held = _put(tree, _tokens(1, 2, 3, 4, 5, 6), [10, 11, 12])
    other = tree.lock_match("a", _tokens(1, 2, 9, 9))
    tree.unlock(other.node)
    assert tree.evict(3).size == 0
    longer = tree.insert(held.node, _tokens(7, 8), np.array([13]))
    tree.unlock(longer.node)
    assert tree.lock_match("a", _tokens(1, 2, 3, 4, 5, 6, 7, 8)).pages.tolist() == [10, 11, 12, 13]


def test_unlocking_more_often_than_locked_is_noticed() -> None:
    tree = RadixTree(PAGE)
    prefix = _put(tree, _tokens(1, 2), [10])
    tree.unlock(prefix.node)
    with pytest.raises(AssertionError, match="as often"):
        tree.unlock(prefix.node)


def test_a_page_that_agrees_in_part_is_found_behind_the_whole_ones() -> None:
    tree = RadixTree(4)
    root = tree.lock_match("a", _tokens()).node
    for page, last in ((10, (5, 6, 7, 8)), (11, (5, 6, 9, 9)), (12, (4, 6, 7, 8))):
        prefix = tree.lock_match("a", _tokens(1, 2, 3, 4))
        new = np.array([9, page] if not prefix.pages.size else [page])
        tree.insert(prefix.node, _tokens(*((1, 2, 3, 4, *last) if not prefix.pages.size else last)), new)
    prefix = tree.lock_match("a", _tokens(1, 2, 3, 4, 5, 6, 9, 1))
    assert prefix.pages.tolist() == [9]
    assert tree.find_partial(prefix.node, _tokens(5, 6, 9, 1)) == PartialPage(11, 3)
    assert tree.find_partial(prefix.node, _tokens(5, 6)) is not None
    assert tree.find_partial(prefix.node, _tokens(6, 6, 7, 8)) is None
    assert tree.find_partial(root, _tokens(1, 2)) == PartialPage(9, 2)


def test_a_lookup_changes_nothing() -> None:
    tree = RadixTree(PAGE)
    tree.unlock(_put(tree, _tokens(1, 2, 3, 4, 5, 6), [10, 11, 12]).node)
    before = [(node.tokens.tolist(), node.last_used) for node in tree.nodes()]
    assert tree.match_length("a", _tokens(1, 2, 3, 4, 5, 7, 8)) == 5
    assert tree.match_length("b", _tokens(1, 2)) == 0
    assert [(node.tokens.tolist(), node.last_used) for node in tree.nodes()] == before


def test_what_is_pinned_stays_until_it_is_unpinned() -> None:
    tree = RadixTree(PAGE)
    tree.unlock(_put(tree, _tokens(1, 2, 3, 4, 5, 6), [10, 11, 12]).node)
    assert not tree.pin("a", _tokens(1, 2, 3, 5)), "only what is cached can be pinned"
    assert tree.unpinned_pages("a", _tokens(1, 2, 3, 4)) == 2
    assert tree.pin("a", _tokens(1, 2, 3, 4))
    assert tree.pin("a", _tokens(1, 2, 3, 4)), "twice is once"
    assert (tree.pinned_pages, tree.idle_pinned_pages, tree.evictable_pages) == (2, 2, 1)
    assert (tree.unpinned_pages("a", _tokens(1, 2, 3, 4)), tree.unpinned_pages("a", _tokens(1, 2, 9, 9))) == (0, 1)
    assert tree.pinned() == [("a", 4, page_hashes(tenant_hash("a"), np.array([1, 2, 3, 4], "<u4").tobytes(), PAGE)[-1])]
    assert tree.evict(5).tolist() == [12]
    assert tree.unpin("a", _tokens(1, 2, 3, 4)) and not tree.unpin("a", _tokens(1, 2, 3, 4))
    assert sorted(tree.evict(5).tolist()) == [10, 11]
    assert list(tree.nodes()) == []


def test_a_page_that_left_and_came_back_before_anybody_looked_has_come() -> None:
    tree = RadixTree(PAGE)
    assert tree.watch() == []
    for _ in range(2):
        tree.unlock(_put(tree, _tokens(1, 2), [10]).node)
        stored, removed = tree.take_changes()
        assert (len(stored), removed) == (1, [])
        tree.evict(1)
    tree.unlock(_put(tree, _tokens(1, 2), [10]).node)
    assert tree.take_changes() == (stored, [])
    tree.evict(1)
    assert tree.take_changes() == ([], stored)
    tree.unwatch()
    tree.unlock(_put(tree, _tokens(1, 2), [10]).node)
    assert tree.take_changes() == ([], [])


class Held:
    """A locked prefix of the model: what a request holds."""

    def __init__(self, tenant: str, tokens: tuple[int, ...], node: Node) -> None:
        self.tenant, self.tokens, self.node = tenant, tokens, node


class TreeAgainstDictionary(RuleBasedStateMachine):
    """The tree and a dictionary {(tenant, prefix in whole pages): page} stay equal under any use."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(24)
        self.tree = RadixTree(PAGE)
        self.cached: dict[tuple[str, tuple[int, ...]], int] = {}
        self.holders: list[Held] = []
        self.pins: set[tuple[str, tuple[int, ...]]] = set()
        self.watched: set[int] = set(self.tree.watch())

    def _cached_pages(self, tenant: str, tokens: tuple[int, ...]) -> list[int]:
        pages = []
        for end in range(PAGE, len(tokens) + 1, PAGE):
            page = self.cached.get((tenant, tokens[:end]))
            if page is None:
                break
            pages.append(page)
        return pages

    @rule(tenant=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 1), max_size=10))
    def look_up(self, tenant: str, tokens: list[int]) -> None:
        wanted = tuple(tokens)
        cached = [tokens for owner, tokens in self.cached if owner == tenant]
        assert self.tree.match_length(tenant, np.array(tokens, dtype=np.int64)) == max(
            (_agreeing(wanted, other) for other in cached), default=0
        )

    @rule(tenant=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def pin(self, tenant: str, tokens: list[int]) -> None:
        whole = tuple(token for token in tokens for _ in range(PAGE))
        unpinned = len(tokens) - len({end for end in range(PAGE, len(whole) + 1, PAGE) if self._is_pinned(tenant, whole[:end])})
        assert self.tree.unpinned_pages(tenant, np.array(whole, dtype=np.int64)) == unpinned
        if self.tree.pin(tenant, np.array(whole, dtype=np.int64)):
            self.pins.add((tenant, whole))
        assert ((tenant, whole) in self.pins) == ((tenant, whole) in self.cached)

    @rule(tenant=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def unpin(self, tenant: str, tokens: list[int]) -> None:
        whole = tuple(token for token in tokens for _ in range(PAGE))
        assert self.tree.unpin(tenant, np.array(whole, dtype=np.int64)) == ((tenant, whole) in self.pins)
        self.pins.discard((tenant, whole))

    @rule()
    def look_what_has_changed(self) -> None:
        stored, removed = self.tree.take_changes()
        assert not set(stored) & set(removed)
        self.watched = (self.watched - set(removed)) | set(stored)
        assert self.watched == {
            page_hashes(tenant_hash(tenant), np.array(tokens, "<u4").tobytes(), PAGE)[-1] for tenant, tokens in self.cached
        }

    def _is_pinned(self, tenant: str, tokens: tuple[int, ...]) -> bool:
        return any(owner == tenant and pin[: len(tokens)] == tokens for owner, pin in self.pins)

    @rule(target=held, tenant=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 1), max_size=10))
    def match(self, tenant: str, tokens: list[int]) -> Held:
        prefix = self.tree.lock_match(tenant, np.array(tokens, dtype=np.int64))
        expected = self._cached_pages(tenant, tuple(tokens))
        assert prefix.pages.tolist() == expected
        holder = Held(tenant, tuple(tokens[: len(expected) * PAGE]), prefix.node)
        self.holders.append(holder)
        return holder

    @rule(holder=held, tokens=st.lists(st.integers(0, 1), max_size=3))
    def insert(self, holder: Held, tokens: list[int]) -> None:
        if holder not in self.holders or len(tokens) > self.pool.num_free:
            return
        behind = tuple(token for token in tokens for _ in range(PAGE))
        own: Pages = self.pool.reserve(len(tokens))
        longer = self.tree.insert(holder.node, np.array(behind, dtype=np.int64), own)
        for index, page in enumerate(longer.pages.tolist()):
            key = (holder.tenant, holder.tokens + behind[: (index + 1) * PAGE])
            assert page == self.cached.setdefault(key, int(own[index]))
        self.pool.release(own[own != longer.pages])
        holder.tokens += behind
        holder.node = longer.node

    @rule(holder=consumes(held))
    def unlock(self, holder: Held) -> None:
        if holder in self.holders:
            self.holders.remove(holder)
            self.tree.unlock(holder.node)

    @rule(count=st.integers(0, 6))
    def evict(self, count: int) -> None:
        evictable = self.tree.evictable_pages
        pages = self.tree.evict(count)
        assert pages.size == min(count, evictable)
        gone = set(pages.tolist())
        for key in [key for key, page in self.cached.items() if page in gone]:
            assert not self._is_pinned(*key)
            assert not any(holder.tenant == key[0] and holder.tokens[: len(key[1])] == key[1] for holder in self.holders)
            del self.cached[key]
        for tenant, tokens in self.cached:
            assert len(tokens) == PAGE or (tenant, tokens[:-PAGE]) in self.cached, "only ends are evicted"
        self.pool.release(pages)

    @invariant()
    def every_page_has_one_owner(self) -> None:
        nodes = list(self.tree.nodes())
        self.pool.assert_owned_once(node.pages for node in nodes)
        assert sorted(self.cached.values()) == sorted(page for node in nodes for page in node.pages.tolist())
        assert self.tree.num_pages == len(self.cached)

    @invariant()
    def exactly_what_nobody_holds_is_evictable(self) -> None:
        locked = {(holder.tenant, holder.tokens[:end]) for holder in self.holders for end in range(PAGE, len(holder.tokens) + 1, PAGE)}
        pinned = {key for key in self.cached if self._is_pinned(*key)}
        assert self.tree.evictable_pages == len(self.cached) - len(locked | pinned)
        assert self.tree.pinned_pages == len(pinned)
        assert self.tree.idle_pinned_pages == len(pinned - locked)


def _agreeing(some: tuple[int, ...], others: tuple[int, ...]) -> int:
    return next((index for index, (one, other) in enumerate(zip(some, others, strict=False)) if one != other), min(len(some), len(others)))


TestTreeAgainstDictionary = TreeAgainstDictionary.TestCase
TestTreeAgainstDictionary.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
