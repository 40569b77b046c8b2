"""The prefix cache: what is counted, in which order it is evicted, and what of it is forgotten, page by page."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from compute_svc.kv.radix_node import locks_of
from compute_svc.kv.radix_tree import Prefix, RadixTree
from triserve.rpc.page_hash import page_hashes, tenant_hash

PAGE = 2


def _tokens(*ids: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(ids, dtype=np.int64)


def _hold(tree: RadixTree, tokens: np.ndarray[tuple[int], np.dtype[np.int64]], first_page: int, tenant: str = "a") -> Prefix:
    """Inserts a prefix, its new pages numbered from one on, and leaves it locked."""
    prefix = tree.lock_match(tenant, tokens)
    found = prefix.pages.size
    return tree.insert(prefix.node, tokens[found * PAGE :], np.arange(first_page + found, first_page + tokens.size // PAGE))


def _keep(tree: RadixTree, tokens: np.ndarray[tuple[int], np.dtype[np.int64]], first_page: int) -> None:
    """Inserts a prefix that nobody holds."""
    tree.unlock(_hold(tree, tokens, first_page).node)


def _waiting_for_eviction(tree: RadixTree) -> int:
    return len(vars(tree)["_leaves"])


def test_what_is_evicted_is_no_longer_counted() -> None:
    tree = RadixTree(PAGE)
    _keep(tree, _tokens(1, 2, 3, 4, 5, 6), 10)
    assert (tree.num_pages, tree.evictable_pages, tree.stored_pages, tree.evicted_pages) == (3, 3, 3, 0)
    assert tree.evict(1).tolist() == [12]
    assert (tree.num_pages, tree.evictable_pages, tree.stored_pages, tree.evicted_pages) == (2, 2, 3, 1)
    assert tree.evict(0).tolist() == []
    assert tree.evict(7).tolist() == [11, 10], "fewer come back if there are no more"
    assert (tree.num_pages, tree.evictable_pages, tree.evicted_pages, tree.num_tenants) == (0, 0, 3, 0)


def test_a_lookup_counts_whole_pages_and_says_where_they_end() -> None:
    tree = RadixTree(PAGE)
    _keep(tree, _tokens(1, 2), 10)
    for last in (3, 5):
        _keep(tree, _tokens(1, 2, last, 4), 10)
    prompts = [_tokens(*ids) for ids in ((1, 2, 3, 4), (1, 2, 5, 4, 9), (1, 2, 5, 9, 9), (1, 2, 9), (1, 7), ())]
    assert [tree.match_length("a", prompt) for prompt in prompts] == [4, 4, 2, 2, 0, 0]
    ends = [tree.find("a", prompt) for prompt in prompts]
    assert [(node is not None and node.page, length) for node, length in ends] == [(11, 4), (11, 4), (10, 2), (10, 2), (0, 0), (0, 0)]
    assert [node.page for node in tree.path("a", prompts[0])] == [10, 11]
    assert (tree.find("b", prompts[0]), tree.path("b", prompts[0])) == ((None, 0), [])


def test_pages_are_held_as_long_as_somebody_else_holds_or_has_pinned_them() -> None:
    tree = RadixTree(PAGE)
    prompt = _tokens(1, 2, 3, 4, 5, 6)
    assert tree.count_held("a", prompt, Counter()) == 0
    first, second = _hold(tree, prompt, 10), _hold(tree, prompt[:4], 10)
    assert tree.count_held("a", prompt, Counter()) == 3
    assert tree.count_held("a", prompt[:5], Counter()) == 2
    assert tree.count_held("b", prompt, Counter()) == 0
    assert tree.count_held("a", prompt, locks_of([first.node])) == 2
    assert tree.count_held("a", prompt, locks_of([second.node])) == 3
    assert tree.count_held("a", prompt, locks_of([first.node, second.node])) == 0
    assert tree.pin("a", prompt[:2])
    assert tree.count_held("a", prompt, locks_of([first.node, second.node])) == 1
    tree.unlock(first.node)
    tree.unlock(second.node)
    assert tree.count_held("a", prompt, Counter()) == 1


def test_what_is_unpinned_is_counted_in_whole_pages_also_of_a_tenant_nobody_knows() -> None:
    tree = RadixTree(PAGE)
    assert str(tree.unpinned_pages("b", _tokens(1, 2, 3, 4, 5, 6))) == "3", "clients read the number"
    _keep(tree, _tokens(1, 2, 3, 4, 5, 6), 10)
    assert tree.pin("a", _tokens(1, 2))
    assert tree.unpinned_pages("a", _tokens(1, 2, 3, 4, 5, 6)) == 2


def test_a_prefix_of_any_length_is_pinned() -> None:
    tree = RadixTree(PAGE)
    prompt = np.arange(1000 * PAGE)
    _keep(tree, prompt, 0)
    assert not tree.pin("a", np.append(prompt, (0, 0)))
    assert tree.pin("a", prompt) and (tree.pinned_pages, tree.evictable_pages) == (1000, 0)
    assert tree.unpin("a", prompt) and (tree.pinned_pages, tree.evictable_pages) == (0, 1000)


def test_what_is_pinned_and_held_is_not_idle() -> None:
    tree = RadixTree(PAGE)
    held = _hold(tree, _tokens(1, 2, 3, 4), 10)
    assert tree.pin("a", _tokens(1, 2, 3, 4))
    assert (tree.pinned_pages, tree.idle_pinned_pages, tree.evictable_pages) == (2, 0, 0)
    tree.unlock(held.node)
    assert (tree.pinned_pages, tree.idle_pinned_pages, tree.evictable_pages) == (2, 2, 0)
    assert tree.unpin("a", _tokens(1, 2, 3, 4))
    assert (tree.pinned_pages, tree.idle_pinned_pages, tree.evictable_pages) == (0, 0, 2)


def test_who_begins_to_watch_is_told_of_all_that_is_there() -> None:
    tree = RadixTree(PAGE)
    _keep(tree, _tokens(1, 2, 3, 4), 10)
    _keep(tree, _tokens(1, 2, 5, 6), 10)
    wanted = [page_hashes(tenant_hash("a"), np.array(ids, "<u4").tobytes(), PAGE)[-1] for ids in ((1, 2), (1, 2, 3, 4), (1, 2, 5, 6))]
    assert sorted(tree.watch()) == sorted(wanted)
    assert tree.take_changes() == ([], [])


def test_of_a_prefix_that_grows_its_new_pages_alone_are_told() -> None:
    tree = RadixTree(PAGE)
    tree.watch()
    held = _hold(tree, _tokens(1, 2, 3, 4, 5, 6), 10)
    tree.take_changes()
    longer = tree.insert(held.node, _tokens(7, 8), np.array([13]))
    assert longer.node.parent is held.node
    assert tree.take_changes() == ([longer.node.hash], [])


def test_new_pages_behind_a_cached_prefix_have_its_tokens_too() -> None:
    tree = RadixTree(PAGE)
    prompt = _tokens(1, 2, 3, 4, 5, 6)
    root = tree.lock_match("a", prompt)
    _keep(tree, prompt[:4], 10)
    longer = tree.insert(root.node, prompt, np.array([20, 21, 22]))
    assert longer.pages.tolist() == [10, 11, 22]
    assert longer.node.key == _tokens(5, 6).astype("<u4").tobytes()
    found = tree.lock_match("a", _tokens(*prompt, 7, 8))
    assert (found.node, found.pages.tolist()) == (longer.node, [10, 11, 22])


@pytest.mark.parametrize("use", ["look up", "hold", "insert"])
def test_whatever_was_used_last_is_evicted_last(use: str) -> None:
    tree = RadixTree(PAGE)
    held = _hold(tree, _tokens(1, 2), 10)
    if use != "hold":
        tree.unlock(held.node)
    _keep(tree, _tokens(3, 4), 20)
    if use == "look up":
        tree.unlock(tree.lock_match("a", _tokens(1, 2)).node)
    elif use == "hold":
        tree.unlock(held.node)
    else:
        _keep(tree, _tokens(1, 2, 5, 6), 10)
    assert tree.evict(1).tolist() == [20]


def test_a_look_up_uses_no_more_of_a_prefix_than_agrees() -> None:
    tree = RadixTree(PAGE)
    _keep(tree, _tokens(1, 2, 3, 4), 10)
    _keep(tree, _tokens(5, 6), 20)
    tree.unlock(tree.lock_match("a", _tokens(1, 2, 9, 9)).node)
    assert [tree.evict(1).tolist() for _ in range(3)] == [[11], [20], [10]]


def test_what_is_used_again_and_again_stands_in_the_line_for_eviction_once() -> None:
    tree = RadixTree(PAGE)
    for base in (1, 3):
        _keep(tree, _tokens(base, 2, 5, 6), 10 * base)
    longest = 0
    for _ in range(200):
        tree.unlock(tree.lock_match("a", _tokens(1, 2, 5, 6)).node)
        longest = max(longest, _waiting_for_eviction(tree))
    assert longest == 2, "the two ends"
    assert tree.evict(1).tolist() == [31]
    assert tree.evict(4).tolist() == [30, 11, 10]
    assert _waiting_for_eviction(tree) == 0


def test_what_was_held_while_eviction_passed_it_by_is_evicted_when_it_is_let_go() -> None:
    tree = RadixTree(PAGE)
    _keep(tree, _tokens(1, 2), 10)
    held = tree.lock_match("a", _tokens(1, 2))
    assert tree.evict(1).size == 0
    tree.unlock(held.node)
    assert tree.evict(1).tolist() == [10]


def test_a_prefix_is_discarded_behind_what_is_kept() -> None:
    tree = RadixTree(PAGE)
    prompt = _tokens(1, 2, 3, 4, 5, 6, 7, 8, 9, 9)
    _keep(tree, prompt, 10)
    _keep(tree, _tokens(1, 2, 0, 0), 10)
    for kept, gone in ((5, []), (4, [14]), (2, [12, 13]), (1, [11])):
        assert sorted(tree.discard("a", prompt, kept).tolist()) == gone
        assert tree.match_length("a", prompt) == 2 * kept
    assert (tree.num_pages, tree.evictable_pages, tree.evicted_pages, tree.num_tenants) == (2, 2, 4, 1)
    assert sorted(tree.evict(9).tolist()) == [10, 11]


def test_two_that_hold_what_was_discarded_give_all_of_it_up_when_the_last_one_goes() -> None:
    tree = RadixTree(PAGE)
    short, long = _hold(tree, _tokens(1, 2), 10), _hold(tree, _tokens(1, 2, 3, 4, 5, 6), 10)
    tree.watch()
    assert tree.discard("a", _tokens(1, 2), 0).size == 0
    assert len(tree.take_changes()[1]) == 3
    # It goes on beside the other: what they share is theirs, and nobody else's.
    short = tree.insert(short.node, _tokens(3, 4, 7, 8), np.array([20, 21]))
    assert short.pages.tolist() == [11, 21]
    assert (tree.match_length("a", _tokens(1, 2)), tree.num_pages, tree.take_changes()) == (0, 4, ([], []))
    assert (tree.unlock(long.node).tolist(), tree.evictable_pages) == ([12], 0)
    assert sorted(tree.unlock(short.node).tolist()) == [10, 11, 21]
    assert (tree.num_pages, tree.evicted_pages, tree.detached, tree.num_tenants) == (0, 4, set(), 0)
    assert tree.take_changes() == ([], [])


def test_a_prefix_locked_twice_stays_until_both_have_let_go() -> None:
    tree = RadixTree(PAGE)
    first, second = _hold(tree, _tokens(1, 2), 10), _hold(tree, _tokens(1, 2), 10)
    tree.unlock(first.node)
    assert (tree.evict(1).size, tree.evictable_pages) == (0, 0)
    tree.unlock(second.node)
    assert (tree.evictable_pages, tree.evict(1).tolist()) == (1, [10])


def test_a_tenant_is_known_as_long_as_somebody_holds_a_prefix_without_pages() -> None:
    tree = RadixTree(PAGE)
    one, two = tree.lock_match("a", _tokens(1)), tree.lock_match("b", _tokens(1))
    assert (tree.num_tenants, one.pages.size) == (2, 0)
    tree.unlock(one.node)
    assert (tree.num_tenants, two.node.key, list(tree.nodes())) == (1, b"b", [])
    assert (tree.find("a", _tokens(1))[0], tree.find("b", _tokens(1))[0]) == (None, two.node)
    tree.unlock(two.node)
    assert tree.num_tenants == 0


def test_each_page_knows_the_hash_of_its_prefix_whoever_is_asked_first() -> None:
    tree = RadixTree(PAGE)
    held = _hold(tree, _tokens(1, 2, 3, 4, 5, 6), 10)
    whole = page_hashes(tenant_hash("a"), np.array([1, 2, 3, 4, 5, 6], "<u4").tobytes(), PAGE)
    second = held.node.parent
    assert second is not None and second.parent is not None
    assert [node.hash for node in (second, held.node, second.parent)] == [whole[1], whole[2], whole[0]]
