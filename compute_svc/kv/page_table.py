"""Which pages hold the KV of each running request."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compute_svc.kv.page_pool import Pages


class PageTables:
    """The page tables of all running requests, one row each, so that a batch's table is one gather.

    Args:
        num_rows: Most requests that run at once.
        pages_per_row: Most pages of one request.

    Attributes:
        entries: [num_rows, pages_per_row] int64; those not in use are 0.
        lengths: [num_rows] int64, pages of each row.
    """

    def __init__(self, num_rows: int, pages_per_row: int) -> None:
        self.entries: npt.NDArray[np.int64] = np.zeros((num_rows, pages_per_row), dtype=np.int64)
        self.lengths: npt.NDArray[np.int64] = np.zeros(num_rows, dtype=np.int64)
        self._free_rows = list(range(num_rows - 1, -1, -1))

    def open(self) -> PageTable:
        """A page table without pages, on a row of its own until it is closed."""
        assert self._free_rows, "there is a row for every request that may run"
        return PageTable(self, self._free_rows.pop())

    def close(self, table: PageTable) -> None:
        """Takes the row back, cleared; the pages stay the caller's."""
        assert table.row not in self._free_rows, "a page table is closed once"
        self.entries[table.row, : table.length] = 0
        self.lengths[table.row] = 0
        self._free_rows.append(table.row)


class PageTable:
    """The pages of one request, in the order of its tokens.

    [0, shared) the radix tree owns, locked by the request · [shared, length) the request owns, released when it leaves.

    Args:
        tables: Where its row is.
        row: Its index.
    """

    __slots__ = ("_entries", "_lengths", "row", "shared")

    def __init__(self, tables: PageTables, row: int) -> None:
        self.row = row
        self.shared = 0
        self._entries: Pages = tables.entries[row]
        self._lengths = tables.lengths

    @property
    def length(self) -> int:
        """Pages in all."""
        return int(self._lengths[self.row])

    def append(self, pages: Pages) -> None:
        """Adds pages the request owns behind the others."""
        length = self.length
        self._entries[length : length + pages.size] = pages
        self._lengths[self.row] = length + pages.size

    def share(self, pages: Pages) -> None:
        """Puts pages the tree owns in place of, or behind, the first pages the request owns."""
        end = self.shared + pages.size
        self._entries[self.shared : end] = pages
        self.shared = end
        if end > self._lengths[self.row]:
            self._lengths[self.row] = end

    def slide(self, first: int, count: int, given_up: int) -> None:
        """Takes `count` pages out, from the `first` on, and puts those of them that the request owns behind the others, for tokens to come.

        Args:
            first: Index of the first one; what is shared ends there or before, apart from what is given up.
            count: How many.
            given_up: How many of them the tree owns; they come first.
        """
        length = self.length
        assert max(first, self.shared) == first + given_up <= first + count <= length, "what is taken out is there"
        kept = np.concatenate((self._entries[first + count : length], self._entries[first + given_up : first + count]))
        self._entries[first : first + kept.size] = kept
        self._entries[first + kept.size : length] = 0
        self._lengths[self.row] = length - given_up
        self.shared = min(self.shared, first)

    @property
    def shared_pages(self) -> Pages:
        """The pages the radix tree owns, a copy."""
        return self._entries[: self.shared].copy()

    @property
    def owned(self) -> Pages:
        """The pages the request owns, a copy."""
        return self.owned_to(self.length)

    def owned_to(self, end: int) -> Pages:
        """Those of the first `end` pages that the request owns, a copy."""
        return self._entries[self.shared : end].copy()
