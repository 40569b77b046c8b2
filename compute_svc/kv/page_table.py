"""Which pages hold the KV of each running request."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compute_svc.kv.page_pool import Pages


class PageTables:
    """The page tables of all running requests, one row each, so that a batch's table is one gather. Unused entries are 0.

    Args:
        num_rows: Most requests that run at once.
        pages_per_row: Most pages of one request.
    """

    def __init__(self, num_rows: int, pages_per_row: int) -> None:
        self.entries: npt.NDArray[np.int64] = np.zeros((num_rows, pages_per_row), dtype=np.int64)
        self._free_rows = list(range(num_rows - 1, -1, -1))

    def open(self) -> PageTable:
        """A page table without pages, on a row of its own until it is closed."""
        assert self._free_rows, "there is a row for every request that may run"
        row = self._free_rows.pop()
        return PageTable(row, self.entries[row])

    def close(self, table: PageTable) -> None:
        """Takes the row back, cleared; the pages are the caller's affair."""
        assert table.row not in self._free_rows, "a page table is closed once"
        self.entries[table.row, : table.length] = 0
        self._free_rows.append(table.row)


class PageTable:
    """The pages of one request, in the order of its tokens.

    [0, shared) the radix tree owns, locked by the request · [shared, length) the request owns, released when it leaves

    Args:
        row: Index in the tables.
        entries: [pages_per_row] int64, the row itself.
    """

    __slots__ = ("_entries", "length", "row", "shared")

    def __init__(self, row: int, entries: npt.NDArray[np.int64]) -> None:
        self.row = row
        self.length = 0
        self.shared = 0
        self._entries = entries

    def append(self, pages: Pages) -> None:
        """Adds pages the request owns behind the others."""
        self._entries[self.length : self.length + pages.size] = pages
        self.length += pages.size

    def share(self, pages: Pages) -> None:
        """Puts pages the tree owns in place of, or behind, the first pages the request owns."""
        end = self.shared + pages.size
        self._entries[self.shared : end] = pages
        self.shared = end
        self.length = max(self.length, end)

    @property
    def last(self) -> int | None:
        """The last page; None if there is none."""
        return int(self._entries[self.length - 1]) if self.length else None

    @property
    def owned(self) -> Pages:
        """The pages the request owns, a copy."""
        return self._entries[self.shared : self.length].copy()
