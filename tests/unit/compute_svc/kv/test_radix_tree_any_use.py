"""The prefix cache under any use, against a naive model: a dictionary of every cached prefix."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from compute_svc.kv.page_pool import PagePool, Pages
from compute_svc.kv.radix_node import Node
from compute_svc.kv.radix_tree import RadixTree
from tests.examples import examples
from triserve.rpc.page_hash import page_hashes, tenant_hash

PAGE = 2


class Held:
    """A locked prefix of the model: what a request holds; of each page which discard took it out of what is found, if one did."""

    def __init__(self, tenant: str, tokens: tuple[int, ...], node: Node) -> None:
        self.tenant, self.tokens, self.node = tenant, tokens, node
        self.discards: list[int | None] = [None] * (len(tokens) // PAGE)

    def holds(self, tenant: str, tokens: tuple[int, ...], discard: int | None) -> bool:
        """Whether it holds the page that these tokens end with."""
        index = len(tokens) // PAGE - 1
        is_prefix = self.tenant == tenant and self.tokens[: len(tokens)] == tokens
        return is_prefix and index < len(self.discards) and self.discards[index] == discard


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
        # Pages that were discarded and are held, by the number of the discard, tenant and prefix.
        self.lost: dict[tuple[int, str, tuple[int, ...]], int] = {}
        self.num_discards = 0

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
        assert self.tree.match_length(tenant, np.array(tokens, dtype=np.int64)) == len(self._cached_pages(tenant, wanted)) * PAGE

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
        own: Pages = self.pool.allocate(len(tokens))
        longer = self.tree.insert(holder.node, np.array(behind, dtype=np.int64), own)
        discard = holder.discards[-1] if holder.discards else None
        for index, page in enumerate(longer.pages.tolist()):
            key = (holder.tenant, holder.tokens + behind[: (index + 1) * PAGE])
            if discard is None:
                assert page == self.cached.setdefault(key, int(own[index]))
            else:
                assert page == self.lost.setdefault((discard, *key), int(own[index]))
        self.pool.release(own[own != longer.pages])
        holder.tokens += behind
        holder.discards += [discard] * len(tokens)
        holder.node = longer.node

    @rule(holder=consumes(held))
    def unlock(self, holder: Held) -> None:
        if holder in self.holders:
            self.holders.remove(holder)
            self._take_given_up(self.tree.unlock(holder.node))

    @rule(tenant=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 1), max_size=10), kept=st.integers(0, 3))
    def discard(self, tenant: str, tokens: list[int], kept: int) -> None:
        pages = self.tree.discard(tenant, np.array(tokens, dtype=np.int64), kept)
        number = self.num_discards = self.num_discards + 1
        first = tuple(tokens[: (kept + 1) * PAGE])
        if len(self._cached_pages(tenant, tuple(tokens))) > kept:
            for holder in self.holders:
                if holder.holds(tenant, first, None):
                    holder.discards[kept:] = [number if discard is None else discard for discard in holder.discards[kept:]]
            for key in [key for key in self.cached if key[0] == tenant and key[1][: len(first)] == first]:
                self.lost[number, *key] = self.cached.pop(key)
            self.pins = {key for key in self.pins if key in self.cached}
        self._take_given_up(pages)

    def _take_given_up(self, pages: Pages) -> None:
        free = [key for key in self.lost if not any(holder.holds(key[1], key[2], key[0]) for holder in self.holders)]
        assert sorted(pages.tolist()) == sorted(self.lost.pop(key) for key in free)
        self.pool.release(pages)

    @rule(count=st.integers(0, 6))
    def evict(self, count: int) -> None:
        evictable = self.tree.evictable_pages
        pages = self.tree.evict(count)
        assert pages.size == min(count, evictable)
        gone = set(pages.tolist())
        for key in [key for key, page in self.cached.items() if page in gone]:
            assert not self._is_pinned(*key)
            assert not any(holder.holds(*key, None) for holder in self.holders)
            del self.cached[key]
        for tenant, tokens in self.cached:
            assert len(tokens) == PAGE or (tenant, tokens[:-PAGE]) in self.cached, "only ends are evicted"
        self.pool.release(pages)

    @invariant()
    def every_page_has_one_owner(self) -> None:
        nodes = list(self.tree.nodes())
        self.pool.assert_owned_once([np.array([node.page for node in [*nodes, *self.tree.detached]], dtype=np.int64)])
        assert sorted(self.cached.values()) == sorted(node.page for node in nodes)
        assert sorted(self.lost.values()) == sorted(node.page for node in self.tree.detached)
        self.tree.assert_consistent(holder.node for holder in self.holders)
        assert self.tree.num_pages == self.tree.stored_pages - self.tree.evicted_pages == len(self.cached) + len(self.lost)

    @invariant()
    def exactly_what_nobody_holds_is_evictable(self) -> None:
        locked = {key for key in self.cached if any(holder.holds(*key, None) for holder in self.holders)}
        pinned = {key for key in self.cached if self._is_pinned(*key)}
        assert self.tree.evictable_pages == len(self.cached) - len(locked | pinned)
        assert self.tree.pinned_pages == len(pinned)
        assert self.tree.idle_pinned_pages == len(pinned - locked)


TestTreeAgainstDictionary = TreeAgainstDictionary.TestCase
TestTreeAgainstDictionary.settings = examples(60, stateful_step_count=40)
