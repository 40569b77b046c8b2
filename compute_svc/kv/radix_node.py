"""The nodes of the prefix cache, what is found from them, and how token ids are compared."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compute_svc.kv.page_pool import Pages
from triserve.rpc.page_hash import page_hashes, tenant_hash

Tokens = npt.NDArray[np.int64]

# Big-endian, so that packed ids sort as the ids do.
_ID = np.dtype(">u4")
BYTES_PER_ID = _ID.itemsize


class PartialPage(NamedTuple):
    """A cached page that agrees with somebody's tokens in its first `num_tokens`, at least 1 and fewer than all."""

    page: int
    num_tokens: int


class Node:
    """A run of pages behind its parent's, with the tokens whose KV they hold.

    [0, len(pages)) the tree owns. While `locks` is above zero a request reads them, or pages behind them; while `pins` is, somebody has
    said that they, or pages behind them, must stay. `keys` are those of the children, sorted. One that `is_detached` is found by nobody:
    it keeps its pages for the requests that hold it, and gives them up when the last of those lets go. One that `is_in_line` has an entry among
    those that may be evicted.
    """

    __slots__ = (
        "_hashes",
        "children",
        "is_detached",
        "is_in_line",
        "keys",
        "last_used",
        "locks",
        "pages",
        "parent",
        "pins",
        "tenant",
        "tokens",
    )

    def __init__(self, parent: Node | None, tokens: Tokens, pages: Pages, *, tenant: str, hashes: list[int] | None = None) -> None:
        self.parent = parent
        self.tokens = tokens
        self.pages = pages
        self.tenant = tenant
        self._hashes = hashes
        self.children: dict[bytes, Node] = {}
        self.keys: list[bytes] = []
        self.locks = 0
        self.pins = 0
        self.last_used = 0
        self.is_detached = False
        self.is_in_line = False

    @property
    def hashes(self) -> list[int]:
        """Of each page, see `triserve.rpc.page_hash`. Computed when they are asked for the first time: mostly nobody does."""
        if self._hashes is None:
            unhashed: list[Node] = []
            node: Node | None = self
            while node is not None and node._hashes is None:
                unhashed.append(node)
                node = node.parent
            # From the top down: a page's hash is made of the one before it.
            for node in reversed(unhashed):
                node._hashes = [] if node.parent is None else node._hashed(node.parent.last_hash, node.tokens, node.pages.size)
        assert self._hashes is not None, "all above it are hashed now"
        return self._hashes

    @property
    def last_hash(self) -> int:
        """Of its last page; of its tenant if it has none."""
        return self.hashes[-1] if self.parent is not None else tenant_hash(self.tenant)

    def append(self, tokens: Tokens, pages: Pages) -> None:
        """Adds pages behind the others, with the tokens whose KV they hold."""
        if self._hashes is not None:
            self._hashes += self._hashed(self.last_hash, tokens, pages.size)
        self.tokens, self.pages = np.concatenate((self.tokens, tokens)), np.concatenate((self.pages, pages))

    @staticmethod
    def _hashed(before: int, tokens: Tokens, num_pages: int) -> list[int]:
        return page_hashes(before, tokens.astype("<u4").tobytes(), tokens.size // num_pages)

    def cut_front(self, num_pages: int, page_size: int) -> tuple[Tokens, Pages, list[int] | None]:
        """Takes the first pages off; returns their tokens, the pages and their hashes, as far as they are known."""
        cut = num_pages * page_size
        front = self.tokens[:cut], self.pages[:num_pages], None if self._hashes is None else self._hashes[:num_pages]
        self.tokens, self.pages = self.tokens[cut:], self.pages[num_pages:]
        if self._hashes is not None:
            self._hashes = self._hashes[num_pages:]
        return front

    def keep_front(self, num_pages: int, page_size: int) -> None:
        """Gives all but the first pages up."""
        self.tokens, self.pages = self.tokens[: num_pages * page_size], self.pages[:num_pages]
        if self._hashes is not None:
            self._hashes = self._hashes[:num_pages]

    def find(self, tokens: Tokens, page_size: int) -> tuple[Node | None, int]:
        """How many tokens behind this node's are cached, those in a page that agrees in part only if others of its node do.

        Returns:
            The node where they end, None if none does, and their number.
        """
        node, offset = self, 0
        while (child := node.children.get(pack_ids(tokens[offset : offset + page_size]))) is not None:
            agreed = count_agreeing(child.tokens, tokens[offset:])
            offset += agreed
            if agreed < child.tokens.size:
                return None, offset
            node = child
        return node, offset

    def find_partial(self, tokens: Tokens, page_size: int) -> PartialPage | None:
        """The page behind this node's that agrees best with the tokens there, where no whole page does."""
        key = pack_ids(tokens[:page_size])
        place = bisect_left(self.keys, key)
        # In sorted order, nobody has more leading ids in common with a key than one of its neighbours.
        best = None
        for neighbour in self.keys[max(0, place - 1) : place + 1]:
            child = self.children[neighbour]
            agreed = count_agreeing(child.tokens[:page_size], tokens)
            if agreed and (best is None or agreed > best.num_tokens):
                best = PartialPage(int(child.pages[0]), agreed)
        return best

    def count_pinned(self, tokens: Tokens, page_size: int) -> int:
        """How many whole pages of tokens behind this node's are pinned."""
        return sum(agreed for node, agreed in self.path(tokens, page_size) if node.pins)

    def path(self, tokens: Tokens, page_size: int) -> Iterator[tuple[Node, int]]:
        """The nodes below this one that the tokens agree with, and in how many whole pages each."""
        node: Node | None = self
        while node is not None and (child := node.children.get(pack_ids(tokens[:page_size]))) is not None:
            agreed = count_agreeing(child.tokens, tokens) // page_size
            yield child, agreed
            tokens = tokens[agreed * page_size :]
            node = child if agreed == child.pages.size else None

    @property
    def is_evictable(self) -> bool:
        """Whether its pages can be given up now."""
        return not (self.locks or self.pins or self.children or self.is_detached) and self.parent is not None and self.pages.size > 0


def locks_of(holders: Iterable[Node]) -> Counter[Node]:
    """How many locks prefixes put on each node, of those that end at these nodes and are locked once each."""
    locks: Counter[Node] = Counter()
    for holder in holders:
        node: Node | None = holder
        while node is not None:
            locks[node] += 1
            node = node.parent
    return locks


def pack_ids(tokens: Tokens) -> bytes:
    """Ids as bytes that sort as the ids do."""
    return tokens.astype(_ID).tobytes()


def count_agreeing(some: Tokens, others: Tokens) -> int:
    """How many leading tokens are the same."""
    length = min(some.size, others.size)
    differs = some[:length] != others[:length]
    return int(differs.argmax()) if differs.any() else length
