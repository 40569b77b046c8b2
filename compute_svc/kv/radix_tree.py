"""The prefix cache: a radix tree over token ids whose edges are runs of whole pages."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compute_svc.kv.page_pool import Pages

Tokens = npt.NDArray[np.int64]


class Node:
    """A run of pages behind its parent's, with the tokens whose KV they hold.

    [0, len(pages)) the tree owns. While `locks` is above zero a request reads them, or pages behind them.
    """

    __slots__ = ("children", "last_used", "locks", "pages", "parent", "tenant", "tokens")

    def __init__(self, parent: Node | None, tokens: Tokens, pages: Pages, *, tenant: str) -> None:
        self.parent = parent
        self.tokens = tokens
        self.pages = pages
        self.tenant = tenant
        self.children: dict[bytes, Node] = {}
        self.locks = 0
        self.last_used = 0


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
    """

    def __init__(self, page_size_tokens: int) -> None:
        self._page_size = page_size_tokens
        self._roots: dict[str, Node] = {}
        self._clock = 0
        # (last_used, push number, node); an entry is stale unless the node still is a leaf, unlocked and of that age.
        self._leaves: list[tuple[int, int, Node]] = []
        self._pushes = 0
        self._num_nodes = 0
        self.num_pages = 0
        self.evictable_pages = 0

    def lock_match(self, tenant: str, tokens: Tokens) -> Prefix:
        """Finds the longest cached prefix in whole pages and locks it.

        Args:
            tenant: Salt of the cache.
            tokens: [n] int64; a part of a page at the end is not looked for.
        """
        root = self._roots.get(tenant)
        if root is None:
            root = self._roots[tenant] = Node(None, np.empty(0, np.int64), np.empty(0, np.int64), tenant=tenant)
        node, parts, _ = self._descend(root, tokens)
        self._lock(node, until=None)
        return Prefix(node, np.concatenate(parts) if parts else np.empty(0, np.int64))

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
            node = self._add_child(node, tokens[found * self._page_size :].copy(), pages[found:].copy())
            parts.append(node.pages)
        self._lock(node, until=locked)
        return Prefix(node, np.concatenate(parts) if parts else pages)

    def unlock(self, node: Node) -> None:
        """Gives up one lock of a prefix; what nobody holds may be evicted."""
        self._clock += 1
        end = node
        current: Node | None = node
        while current is not None:
            assert current.locks > 0, "a prefix is unlocked as often as it was locked"
            current.locks -= 1
            current.last_used = self._clock
            if current.locks == 0:
                self.evictable_pages += current.pages.size
            current = current.parent
        self._offer(end)

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
            if leaf.last_used != last_used or not self._is_evictable(leaf):
                continue
            taken = min(count, leaf.pages.size)
            kept = leaf.pages.size - taken
            parts.append(leaf.pages[kept:])
            count -= taken
            self.num_pages -= taken
            self.evictable_pages -= taken
            if kept:
                leaf.pages = leaf.pages[:kept]
                leaf.tokens = leaf.tokens[: kept * self._page_size]
                self._offer(leaf)
            else:
                self._remove(leaf)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def nodes(self) -> Iterator[Node]:
        """Every node, roots too."""
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
        self._clock += 1
        size = self._page_size
        parts: list[Pages] = []
        offset = 0
        while offset + size <= tokens.size:
            child = node.children.get(tokens[offset : offset + size].tobytes())
            if child is None:
                break
            length = min(child.tokens.size, tokens.size - offset)
            differs = child.tokens[:length] != tokens[offset : offset + length]
            agreed = (int(differs.argmax()) if differs.any() else length) // size
            if agreed < child.pages.size:
                child = self._split(child, agreed)
            child.last_used = self._clock
            parts.append(child.pages)
            offset += agreed * size
            node = child
        return node, parts, offset // size

    def _split(self, node: Node, num_pages: int) -> Node:
        """Cuts a node in two and returns the upper one. The node itself stays the lower: who holds it, holds the same prefix."""
        parent = node.parent
        assert parent is not None, "a root has no pages to split"
        cut = num_pages * self._page_size
        upper = Node(parent, node.tokens[:cut], node.pages[:num_pages], tenant=node.tenant)
        upper.locks = node.locks
        upper.last_used = node.last_used
        parent.children[self._key(upper)] = upper
        node.parent = upper
        node.tokens = node.tokens[cut:]
        node.pages = node.pages[num_pages:]
        upper.children[self._key(node)] = node
        self._num_nodes += 1
        return upper

    def _add_child(self, parent: Node, tokens: Tokens, pages: Pages) -> Node:
        child = Node(parent, tokens, pages, tenant=parent.tenant)
        child.last_used = self._clock
        parent.children[self._key(child)] = child
        self._num_nodes += 1
        self.num_pages += pages.size
        self.evictable_pages += pages.size
        return child

    def _lock(self, node: Node, *, until: Node | None) -> None:
        """Locks a node and all above it, up to but without `until`, whose lock passes on to the node."""
        current: Node | None = node
        while current is not until:
            assert current is not None, "the locked node is above the new one"
            if current.locks == 0:
                self.evictable_pages -= current.pages.size
            current.locks += 1
            current = current.parent

    def _key(self, node: Node) -> bytes:
        return node.tokens[: self._page_size].tobytes()

    def _is_evictable(self, node: Node) -> bool:
        return node.locks == 0 and not node.children and node.parent is not None and node.pages.size > 0

    def _offer(self, node: Node) -> None:
        """Puts a node in line for eviction if it is an unlocked leaf; forgets a tenant that has nothing left."""
        if node.parent is None:
            if not node.children and node.locks == 0:
                del self._roots[node.tenant]
            return
        if not self._is_evictable(node):
            return
        if len(self._leaves) > 2 * self._num_nodes + 64:
            self._leaves = [entry for entry in self._leaves if entry[2].last_used == entry[0] and self._is_evictable(entry[2])]
            heapq.heapify(self._leaves)
        self._pushes += 1
        heapq.heappush(self._leaves, (node.last_used, self._pushes, node))

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None, "a root is not evicted"
        del parent.children[self._key(leaf)]
        leaf.parent = None
        self._num_nodes -= 1
        self._offer(parent)
