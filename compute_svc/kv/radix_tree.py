"""The prefix cache: a radix tree over token ids whose edges are runs of whole pages."""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from compute_svc.kv.cache_changes import CacheChanges
from compute_svc.kv.page_pool import Pages
from compute_svc.kv.radix_node import BYTES_PER_ID, Node, Tokens, count_agreeing, pack_ids

_NOTHING: Pages = np.array([], dtype=np.int64)


class Prefix(NamedTuple):
    """A cached prefix, locked for the caller.

    Attributes:
        node: What to unlock: the prefix ends where this node ends.
        pages: [n] int64, the pages of the prefix that the call found or took, in order; the tree owns them.
    """

    node: Node
    pages: Pages


class RadixTree:
    """Finds and keeps computed prefixes, page by page and tenant by tenant.

    Tokens themselves are compared, never a hash of them, and each tenant has a root of its own: a hit cannot be somebody else's.
    Only whole pages enter, only after they are computed.

    Args:
        page_size_tokens: Tokens of one page.

    Attributes:
        num_pages: Pages in the tree, those that are discarded and still held among them.
        evictable_pages: Those that nobody holds and nobody has pinned.
        pinned_pages: Those that are pinned.
        idle_pinned_pages: Those that are pinned and that nobody holds.
        stored_pages: Pages that have entered since the start.
        evicted_pages: Pages that were given up, evicted or discarded.
        detached: Nodes that were discarded and are still held.
    """

    def __init__(self, page_size_tokens: int) -> None:
        self._page_size = page_size_tokens
        self._roots: dict[str, Node] = {}
        self._ticks = itertools.count()
        self._now = next(self._ticks)
        # (last_used, push number, node): a heap with one entry at most for each node, brought up to date when it comes up; entries of nodes
        # that cannot be evicted are dropped then.
        self._leaves: list[tuple[int, int, Node]] = []
        self._pushes = itertools.count()
        # By tenant and packed ids, in the order of pinning.
        self._pins: dict[tuple[str, bytes], Node] = {}
        self._changes = CacheChanges()
        self.detached: set[Node] = set()
        self._given_up: list[Pages] = []
        self.num_pages = 0
        self.evictable_pages = 0
        self.pinned_pages = 0
        self.idle_pinned_pages = 0
        self.stored_pages = 0
        self.evicted_pages = 0

    @property
    def num_tenants(self) -> int:
        """Tenants that have a prefix here, or hold one without pages."""
        return len(self._roots)

    def match_length(self, tenant: str, tokens: Tokens) -> int:
        """How many of the first tokens are cached, those in a page that agrees in part included. Changes nothing."""
        node, length = self.find(tenant, tokens)
        partial = None if node is None else node.find_partial(tokens[length:], self._page_size)
        return length + (0 if partial is None else partial.num_tokens)

    def find(self, tenant: str, tokens: Tokens) -> tuple[Node | None, int]:
        """How many of the first tokens are cached, and the node that ends there; None if none does. Changes nothing."""
        root = self._roots.get(tenant)
        return (None, 0) if root is None else root.find(tokens, self._page_size)

    def count_held(self, tenant: str, tokens: Tokens, without: Counter[Node]) -> int:
        """How many whole pages of a cached prefix somebody holds or has pinned, were these locks given up. Changes nothing."""
        root = self._roots.get(tenant)
        path = () if root is None else root.path(tokens, self._page_size)
        return sum(agreed for node, agreed in path if node.pins or node.locks > without[node])

    def lock_match(self, tenant: str, tokens: Tokens) -> Prefix:
        """Finds the longest cached prefix in whole pages and locks it.

        Args:
            tenant: Salt of the cache.
            tokens: [n] int64; a part of a page at the end is not looked for.
        """
        root = self._roots.get(tenant)
        if root is None:
            root = self._roots[tenant] = Node(None, _NOTHING, _NOTHING, tenant=tenant)
        node, parts, _ = self._descend(root, tokens)
        self._hold(node, until=None, locks=1)
        return Prefix(node, np.concatenate(parts) if parts else _NOTHING)

    def insert(self, locked: Node, tokens: Tokens, pages: Pages) -> Prefix:
        """Adds computed pages behind a locked prefix and moves the lock to their end.

        Args:
            locked: Node of a prefix the caller holds.
            tokens: [n * page_size] int64, the tokens behind the prefix.
            pages: [n] int64, the caller's pages that hold their KV.

        Returns:
            The longer prefix, which takes over the lock, and its n new pages. Where one differs from the caller's, the tree had it
            already and the caller still owns its own; the others are the tree's now.
        """
        assert tokens.size == pages.size * self._page_size, "whole pages enter the tree"
        assert locked.locks > 0, "a prefix is locked while it grows"
        node, parts, found = self._descend(locked, tokens)
        if found < pages.size:
            node = self._add(node, tokens[found * self._page_size :].copy(), pages[found:].copy(), is_own=node is locked)
            parts.append(pages[found:])
        self._hold(node, until=locked, locks=1)
        return Prefix(node, np.concatenate(parts) if parts else pages)

    def unlock(self, node: Node) -> None:
        """Gives up one lock of a prefix; what nobody holds may be evicted.

        Effects: `take_given_up` has pages that were discarded if this was their last lock.
        """
        self._let_go(node, locks=-1)

    def discard(self, tenant: str, tokens: Tokens, num_kept: int) -> None:
        """Forgets a cached prefix behind its first `num_kept` pages, and all that lies behind it: from now on nobody finds it.

        Effects: pins of what is forgotten are undone. What others hold they keep until they unlock it; `take_given_up` has the rest.
        """
        root, start = self._roots.get(tenant), 0
        for node, agreed in [] if root is None else root.path(tokens, self._page_size):
            if start + agreed > num_kept:
                if start < num_kept:
                    self._split(node, num_kept - start)
                self._detach(node)
                return
            start += agreed

    def take_given_up(self) -> Pages:
        """[n] int64, discarded pages that nobody holds any more; the caller owns them."""
        taken, self._given_up = self._given_up, []
        return np.concatenate(taken) if taken else _NOTHING

    def pin(self, tenant: str, tokens: Tokens) -> bool:
        """Keeps a prefix until it is unpinned; idempotent.

        Args:
            tenant: Salt of the cache.
            tokens: [n * page_size] int64, n at least 1.

        Returns:
            Whether all of it is cached; if not, nothing is pinned.
        """
        assert tokens.size and tokens.size % self._page_size == 0, "whole pages are pinned"
        name = (tenant, pack_ids(tokens))
        if name not in self._pins:
            root = self._roots.get(tenant)
            if root is None or self.match_length(tenant, tokens) < tokens.size:
                return False
            node, _, _ = self._descend(root, tokens)
            self._hold(node, until=None, pins=1)
            self._pins[name] = node
        return True

    def unpin(self, tenant: str, tokens: Tokens) -> bool:
        """Undoes `pin`; returns whether there was something to undo."""
        node = self._pins.pop((tenant, pack_ids(tokens)), None)
        if node is not None:
            self._let_go(node, pins=-1)
        return node is not None

    def unpinned_pages(self, tenant: str, tokens: Tokens) -> int:
        """How many pages of a prefix, cached or not, are not pinned. Changes nothing."""
        root = self._roots.get(tenant)
        num_pages = tokens.size // self._page_size
        return num_pages if root is None else num_pages - root.count_pinned(tokens, self._page_size)

    def pinned(self) -> list[tuple[str, int, int]]:
        """Of each pinned prefix its tenant, its tokens and the hash of its last page, in the order of pinning."""
        return [(tenant, len(packed) // BYTES_PER_ID, node.last_hash) for (tenant, packed), node in self._pins.items()]

    def watch(self) -> list[int]:
        """From now on `take_changes` tells what has changed; returns the hashes of all pages that are here."""
        self._changes.watch()
        return [page for node in self.nodes() for page in node.hashes]

    def unwatch(self) -> None:
        """Undoes `watch`."""
        self._changes.unwatch()

    def take_changes(self) -> tuple[list[int], list[int]]:
        """Hashes of pages that have entered and of those that have left since the last call, while somebody watches."""
        return self._changes.take()

    def evict(self, count: int) -> Pages:
        """Gives up pages that nobody holds, the ends of the least recently used prefixes first.

        Args:
            count: How many; fewer come back if fewer can be given up.

        Returns:
            [at most count] int64; the caller owns them.
        """
        parts: list[Pages] = []
        while count and self._leaves:
            last_used, _, leaf = heapq.heappop(self._leaves)
            leaf.is_in_line = False
            if leaf.last_used == last_used and leaf.is_evictable:
                taken = self._cut(leaf, count)
                parts.append(taken)
                count -= taken.size
            else:
                self._offer(leaf)
        return np.concatenate(parts) if parts else _NOTHING

    def nodes(self) -> Iterator[Node]:
        """Every node that can be found, roots too."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _descend(self, node: Node, tokens: Tokens) -> tuple[Node, list[Pages], int]:
        """Walks down from a node as far as the tokens agree, in whole pages.

        Returns:
            The node where the agreement ends, the pages of each node passed, and how many pages they are.

        Effects: splits the last node if the tokens agree with a part of it; marks every node passed as used.
        """
        self._now = next(self._ticks)
        size = self._page_size
        parts: list[Pages] = []
        offset = 0
        while (child := node.children.get(pack_ids(tokens[offset : offset + size]))) is not None:
            agreed = count_agreeing(child.tokens, tokens[offset:]) // size
            if agreed < child.pages.size:
                child = self._split(child, agreed)
            child.last_used = self._now
            parts.append(child.pages)
            offset += agreed * size
            node = child
        return node, parts, offset // size

    def _split(self, node: Node, num_pages: int) -> Node:
        """Cuts a node in two and returns the upper one. The node itself stays the lower: who holds it, holds the same prefix."""
        parent = node.parent
        assert parent is not None, "a root has no pages to split"
        tokens, pages, hashes = node.cut_front(num_pages, self._page_size)
        upper = Node(parent, tokens, pages, tenant=node.tenant, hashes=hashes)
        upper.locks, upper.pins = node.locks, node.pins
        upper.last_used = node.last_used
        # Its first page was the node's, so it takes its place under the same key.
        parent.children[self._key(upper)] = upper
        node.parent = upper
        key = self._key(node)
        upper.children[key] = node
        upper.keys.append(key)
        if node.is_detached:
            upper.is_detached = True
            self.detached.add(upper)
        return upper

    def _add(self, parent: Node, tokens: Tokens, pages: Pages, *, is_own: bool) -> Node:
        """Puts pages behind a node, in it or in a child: returns the node where they end.

        Args:
            is_own: Whether the caller's prefix ends at the node. Where that is all that holds it, it grows: a prompt that is computed in
                many chunks is one node and not a chain of them.
        """
        if is_own and parent.locks == 1 and not (parent.children or parent.pins) and parent.parent is not None:
            parent.append(tokens, pages)
            child = parent
        else:
            child = Node(parent, tokens, pages, tenant=parent.tenant)
            key = self._key(child)
            parent.children[key] = child
            insort(parent.keys, key)
            self._count(child, 1)
            if parent.is_detached:
                child.is_detached = True
                self.detached.add(child)
        child.last_used = self._now
        self.num_pages += pages.size
        self.stored_pages += pages.size
        if not child.is_detached:
            self._changes.note(child, child.pages.size - pages.size, are_cached=True)
        return child

    def _detach(self, top: Node) -> None:
        """Takes a node, with all below it, out of what is found."""
        below = [top]
        for node in below:
            below.extend(node.children.values())
        for name, pinned in [pin for pin in self._pins.items() if pin[1] in below]:
            del self._pins[name]
            self._hold(pinned, until=None, pins=-1)
        parent = top.parent
        assert parent is not None, "a root is not discarded"
        self._drop_key(parent, self._key(top))
        for node in below:
            node.is_detached = True
            self._changes.note(node, 0, are_cached=False)
        self.detached.update(below)
        self._leaves = [entry for entry in self._leaves if not entry[-1].is_detached]
        heapq.heapify(self._leaves)
        for node in reversed(below):
            self._give_up(node)
        self._offer(parent)

    def _give_up(self, node: Node) -> None:
        """Gives up the pages of a discarded node if nobody holds it."""
        if node.locks:
            return
        parent = node.parent
        assert parent is not None and not node.children, "who holds what is below a node holds the node"
        self._count(node, -1)
        self.num_pages -= node.pages.size
        self.evicted_pages += node.pages.size
        self._given_up.append(node.pages)
        self.detached.remove(node)
        if parent.children.get(self._key(node)) is node:
            self._drop_key(parent, self._key(node))
        node.parent = None

    def _cut(self, leaf: Node, count: int) -> Pages:
        """Takes up to `count` pages from the end of a leaf that can be evicted."""
        kept = max(0, leaf.pages.size - count)
        taken = leaf.pages[kept:]
        self.num_pages -= taken.size
        self.evicted_pages += taken.size
        self._count(leaf, -1)
        self._changes.note(leaf, kept, are_cached=False)
        if kept:
            leaf.keep_front(kept, self._page_size)
            self._count(leaf, 1)
            self._offer(leaf)
        else:
            self._remove(leaf)
        return taken

    def _hold(self, node: Node, *, until: Node | None, locks: int = 0, pins: int = 0) -> None:
        """Changes locks and pins of a node and all above it, up to but without `until`, whose own pass on to the node."""
        current: Node | None = node
        while current is not until:
            assert current is not None, "the locked node is above the new one"
            self._count(current, -1)
            current.locks += locks
            current.pins += pins
            assert current.locks >= 0 and current.pins >= 0, "a prefix is unlocked as often as it was locked"
            self._count(current, 1)
            current = current.parent

    def _let_go(self, node: Node, *, locks: int = 0, pins: int = 0) -> None:
        self._hold(node, until=None, locks=locks, pins=pins)
        self._now = next(self._ticks)
        current: Node | None = node
        while current is not None:
            current.last_used = self._now
            current = current.parent
        while node.is_detached and node.parent is not None:
            node, detached = node.parent, node
            self._give_up(detached)
        self._offer(node)

    def _count(self, node: Node, sign: int) -> None:
        """Adds a node to the counts of pages that depend on who holds it, or takes it out."""
        pages = sign * node.pages.size
        if node.pins:
            self.pinned_pages += pages
        if not node.locks:
            if node.pins:
                self.idle_pinned_pages += pages
            else:
                self.evictable_pages += pages

    def _key(self, node: Node) -> bytes:
        return pack_ids(node.tokens[: self._page_size])

    def _offer(self, node: Node) -> None:
        """Puts a node in line for eviction if it is an unlocked leaf; forgets a tenant that has nothing left."""
        if node.parent is None:
            if not (node.children or node.locks):
                del self._roots[node.tenant]
            return
        if node.is_evictable and not node.is_in_line:
            node.is_in_line = True
            heapq.heappush(self._leaves, (node.last_used, next(self._pushes), node))

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None, "a root is not evicted"
        self._drop_key(parent, self._key(leaf))
        leaf.parent = None
        self._offer(parent)

    def _drop_key(self, parent: Node, key: bytes) -> None:
        del parent.children[key]
        del parent.keys[bisect_left(parent.keys, key)]
