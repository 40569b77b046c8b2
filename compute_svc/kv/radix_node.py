"""The nodes of the prefix cache, and how token ids are compared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compute_svc.kv.page_pool import Pages
from triserve.rpc.page_hash import tenant_hash

Tokens = npt.NDArray[np.int64]

# Big-endian, so that packed ids sort as the ids do.
_ID = np.dtype(">u4")
BYTES_PER_ID = _ID.itemsize


class Node:
    """A run of pages behind its parent's, with the tokens whose KV they hold.

    [0, len(pages)) the tree owns. While `locks` is above zero a request reads them, or pages behind them; while `pins` is, somebody has
    said that they, or pages behind them, must stay. `keys` are those of the children, sorted; `hashes` has one for each page.
    """

    __slots__ = ("children", "hashes", "keys", "last_used", "locks", "pages", "parent", "pins", "tenant", "tokens")

    def __init__(self, parent: Node | None, tokens: Tokens, pages: Pages, *, tenant: str) -> None:
        self.parent = parent
        self.tokens = tokens
        self.pages = pages
        self.tenant = tenant
        self.hashes: list[int] = []
        self.children: dict[bytes, Node] = {}
        self.keys: list[bytes] = []
        self.locks = 0
        self.pins = 0
        self.last_used = 0

    @property
    def last_hash(self) -> int:
        """Of its last page; of its tenant if it has none."""
        return self.hashes[-1] if self.hashes else tenant_hash(self.tenant)

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
