"""The nodes of the prefix cache: one page each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from triserve.rpc.page_hash import page_hashes, tenant_hash

Tokens = npt.NDArray[np.int64]

# As `triserve.rpc.page_hash` wants them.
_ID = np.dtype("<u4")
BYTES_PER_ID = _ID.itemsize


class Node:
    """A page behind its parent's. A root, one for each tenant, has no page of its own.

    `locks` are the requests whose prefix ends here and the children that are locked; `pins` likewise. So all that is above a locked page is
    locked, and locking walks up only as far as nobody else has. A node that `is_detached` is found by nobody: it keeps its page for those
    that hold it.

    Args:
        parent: The page before; None = this is a root.
        key: The page's token ids, packed; of a root its tenant.
        page: The page, the tree's; nothing of a root.
    """

    __slots__ = ("_hash", "children", "is_detached", "is_in_line", "key", "last_used", "locks", "page", "parent", "pins")

    def __init__(self, parent: Node | None, key: bytes, page: int = 0) -> None:
        self.parent = parent
        self.key = key
        self.page = page
        self.children: dict[bytes, Node] = {}
        self.locks = 0
        self.pins = 0
        self.last_used = 0
        # For eviction.
        self.is_in_line = False
        self.is_detached: bool = parent is not None and parent.is_detached
        self._hash = None if parent is not None else tenant_hash(key.decode())

    @property
    def hash(self) -> int:
        """See `triserve.rpc.page_hash`. Computed when somebody asks: mostly nobody does."""
        unhashed: list[Node] = []
        node = self
        while node._hash is None:
            unhashed.append(node)
            assert node.parent is not None, "a root has its hash"
            node = node.parent
        result = node._hash
        # From the top down: a page's hash is made of the one before it.
        for node in reversed(unhashed):
            result = node._hash = page_hashes(result, node.key, len(node.key) // BYTES_PER_ID)[0]
        return result

    @property
    def is_evictable(self) -> bool:
        """Whether its page can be given up now: the last of a prefix that nobody holds."""
        return not (self.locks or self.pins or self.children or self.is_detached) and self.parent is not None

    def path(self, keys: Iterable[bytes]) -> Iterator[Node]:
        """The nodes below this one that hold these pages, as far as they are there."""
        node: Node | None = self
        for key in keys:
            assert node is not None, "the walk ends with the first page that is not there"
            node = node.children.get(key)
            if node is None:
                return
            yield node


def keys_of(tokens: Tokens, page_size: int) -> list[bytes]:
    """The keys of whole pages of tokens; what is left at the end has none."""
    packed, size = tokens.astype(_ID).tobytes(), page_size * BYTES_PER_ID
    return [packed[start : start + size] for start in range(0, len(packed) - size + 1, size)]


def locks_of(holders: Iterable[Node]) -> Counter[Node]:
    """How many locks nodes would lose if these, a lock each, were unlocked."""
    lost: Counter[Node] = Counter()
    for holder in holders:
        node: Node | None = holder
        while node is not None:
            lost[node] += 1
            node = node.parent if lost[node] == node.locks else None
    return lost


def count_agreeing(some: Tokens, others: Tokens) -> int:
    """How many leading tokens are the same."""
    length = min(some.size, others.size)
    differs = some[:length] != others[:length]
    return int(differs.argmax()) if differs.any() else length
