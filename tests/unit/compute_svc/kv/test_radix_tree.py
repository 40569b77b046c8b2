"""The prefix cache, promise by promise."""

from __future__ import annotations

import numpy as np
import pytest

from compute_svc.kv.radix_tree import Prefix, RadixTree
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


def test_a_lookup_changes_nothing() -> None:
    tree = RadixTree(PAGE)
    tree.unlock(_put(tree, _tokens(1, 2, 3, 4, 5, 6), [10, 11, 12]).node)
    before = [(node.key, node.last_used) for node in tree.nodes()]
    assert tree.match_length("a", _tokens(1, 2, 3, 4, 5, 7, 8)) == 4, "a page that agrees in part is not shared"
    assert tree.match_length("b", _tokens(1, 2)) == 0
    assert [(node.key, node.last_used) for node in tree.nodes()] == before


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


def test_a_prompt_computed_in_many_chunks_is_one_prefix_and_hashed_whenever_somebody_asks() -> None:
    tree = RadixTree(PAGE)
    tree.watch()
    tokens = np.array([(page % 90, page // 90) for page in range(1001)]).reshape(-1)
    node = tree.lock_match("a", _tokens()).node
    for page in range(1001):
        node = tree.insert(node, tokens[page * PAGE : (page + 1) * PAGE], np.array([page])).node
    assert (len(list(tree.nodes())), tree.num_pages, tree.stored_pages) == (1001, 1001, 1001)
    assert (tree.evictable_pages, node.locks) == (0, 1)
    whole = page_hashes(tenant_hash("a"), tokens.astype("<u4").tobytes(), PAGE)
    assert node.hash == whole[-1] and sorted(tree.take_changes()[0]) == sorted(whole)
    tree.unlock(node)
    assert tree.evictable_pages == 1001
    assert tree.lock_match("a", tokens).pages.tolist() == list(range(1001))


def test_a_lock_reaches_only_what_nobody_has_locked() -> None:
    tree = RadixTree(PAGE)
    one = _put(tree, _tokens(1, 2, 3, 4), [10, 11]).node
    two = _put(tree, _tokens(1, 2, 5, 6), [10, 12]).node
    parent = one.parent
    assert parent is not None and parent is two.parent
    assert (one.locks, two.locks, parent.locks) == (1, 1, 2)
    tree.unlock(one)
    assert (one.locks, two.locks, parent.locks, tree.evictable_pages) == (0, 1, 1, 1)


def test_a_chain_of_any_length_is_hashed_and_given_up() -> None:
    tree = RadixTree(PAGE)
    tokens = np.arange(3000 * PAGE)
    held = _put(tree, tokens, list(range(3000)))
    assert held.node.hash == page_hashes(tenant_hash("a"), tokens.astype("<u4").tobytes(), PAGE)[-1]
    tree.unlock(held.node)
    assert sorted(tree.discard("a", tokens, 1).tolist()) == list(range(1, 3000))
    assert tree.num_pages == tree.evictable_pages == 1


def test_what_is_discarded_is_found_by_nobody_and_stays_with_who_holds_it() -> None:
    tree = RadixTree(PAGE)
    tree.watch()
    mine = _put(tree, _tokens(1, 2, 3, 4, 5, 6), [10, 11, 12])
    other = _put(tree, _tokens(1, 2, 3, 4, 7, 8), [10, 11, 13])
    assert tree.pin("a", _tokens(1, 2, 3, 4, 5, 6))
    tree.unlock(mine.node)
    tree.take_changes()
    assert tree.discard("a", _tokens(1, 2, 3, 4, 5, 6, 9), 1).tolist() == [12], "nobody holds that one"
    assert tree.match_length("a", _tokens(1, 2, 3, 4)) == 2
    assert (tree.pinned(), tree.pinned_pages, tree.idle_pinned_pages) == ([], 0, 0)
    assert (tree.num_pages, tree.evictable_pages, len(tree.detached)) == (3, 0, 2)
    assert len(tree.take_changes()[1]) == 3
    assert tree.evict(5).size == 0
    # Meanwhile the same tokens are computed again.
    again = _put(tree, _tokens(1, 2, 3, 4), [10, 20])
    assert again.pages.tolist() == [20]
    longer = tree.insert(other.node, _tokens(9, 9), np.array([14]))
    assert tree.match_length("a", _tokens(1, 2, 3, 4, 7, 8, 9, 9)) == 4, "what comes behind it is found by nobody either"
    assert sorted(tree.unlock(longer.node).tolist()) == [11, 13, 14]
    assert (tree.num_pages, tree.evicted_pages, tree.stored_pages, tree.detached) == (2, 4, 6, set())
    tree.unlock(again.node)
    assert sorted(tree.evict(5).tolist()) == [10, 20] and list(tree.nodes()) == []


def test_discarding_a_tenants_last_pages_forgets_the_tenant() -> None:
    tree = RadixTree(PAGE)
    tree.unlock(_put(tree, _tokens(1, 2, 3, 4), [10, 11]).node)
    assert tree.discard("b", _tokens(1, 2), 0).size == tree.discard("a", _tokens(5, 6), 0).size == 0
    assert tree.num_tenants == 1
    assert sorted(tree.discard("a", _tokens(1, 2, 9, 9), 0).tolist()) == [10, 11]
    assert (tree.num_tenants, tree.num_pages, tree.evictable_pages) == (0, 0, 0)
