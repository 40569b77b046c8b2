"""The nodes of the prefix cache, and how token ids are compared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compute_svc.kv.page_pool import Pages
from triserve.rpc.page_hash import page_hashes, tenant_hash

Tokens = npt.NDArray[np.int64]

# Big-endian, so that packed ids sort as the ids do.
_ID = np.dtype(">u4")
BYTES_PER_ID = _ID.itemsize


class Node:
    """A run of pages behind its parent's, with the tokens whose KV they hold.

    [0, len(pages)) the tree owns. While `locks` is above zero a request reads them, or pages behind them; while `pins` is, somebody has
    said that they, or pages behind them, must stay. `keys` are those of the children, sorted.
    """

    __slots__ = ("_hashes", "children", "keys", "last_used", "locks", "pages", "parent", "pins", "tenant", "tokens")

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

    @property
    def hashes(self) -> list[int]:
        """Of each page, see `triserve.rpc.page_hash`. Computed when they are asked for the first time: mostly nobody does."""
        if self._hashes is None:
            if self.parent is None:
                return []
            self._hashes = page_hashes(self.parent.last_hash, self.tokens.astype("<u4").tobytes(), self.tokens.size // self.pages.size)
        return self._hashes

    @property
    def last_hash(self) -> int:
        """Of its last page; of its tenant if it has none."""
        return self.hashes[-1] if self.parent is not None else tenant_hash(self.tenant)

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

    @property
    def is_evictable(self) -> bool:
        """Whether its pages can be given up now."""
        return not (self.locks or self.pins or self.children) and self.parent is not None and self.pages.size > 0


def pack_ids(tokens: Tokens) -> bytes:
    """Ids as bytes that sort as the ids do."""
    return tokens.astype(_ID).tobytes()


def count_agreeing(some: Tokens, others: Tokens) -> int:
    """How many leading tokens are the same."""
    length = min(some.size, others.size)
    differs = some[:length] != others[:length]
    return int(differs.argmax()) if differs.any() else length
