"""Which pages hold the KV of each running request."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compute_svc.kv.page_pool import Pages

_NO_PAGES: Pages = np.empty(0, dtype=np.int64)


class PageTables:
    """The page tables of all running requests, one row each, so that a batch's table is one gather. Unused entries are 0.

    Args:
        num_rows: Most requests that run at once.
        pages_per_row: Most pages of one request.
    """

    def __init__(self, num_rows: int, pages_per_row: int) -> None:
        self.entries: npt.NDArray[np.int64] = np.zeros((num_rows, pages_per_row), dtype=np.int64)
        self._free_rows = list(reversed(range(num_rows)))

    def open(self) -> PageTable:
        """A page table without pages, on a row of its own until it is closed."""
        assert self._free_rows, "there is a row for every request that may run"
        row = self._free_rows.pop()
        return PageTable(row, self.entries[row])

    def close(self, table: PageTable) -> None:
        """Takes the row back, cleared; the pages stay the caller's."""
        assert table.row not in self._free_rows, "a page table is closed once"
        self.entries[table.row, : table.length] = 0
        self._free_rows.append(table.row)


class PageTable:
    """The pages of one request, in the order of its tokens.

    [0, shared) the radix tree owns, locked by the request · [shared, length) the request owns, released when it leaves.
    Behind them comes its room, pages reserved for tokens that are not there yet; they enter the row when they are used.

    Args:
        row: Index in the tables.
        entries: [pages_per_row] int64, the row itself.
    """

    __slots__ = ("_entries", "length", "room", "row", "shared")

    def __init__(self, row: int, entries: npt.NDArray[np.int64]) -> None:
        self.row = row
        self.length = 0
        self.shared = 0
        self.room: Pages = _NO_PAGES
        self._entries = entries

    def append(self, pages: Pages) -> None:
        """Adds pages the request owns behind the others; there is no room left."""
        assert not self.room.size, "room is used before pages are added"
        self._entries[self.length : self.length + pages.size] = pages
        self.length += pages.size

    def share(self, pages: Pages) -> None:
        """Puts pages the tree owns in place of, or behind, the first pages the request owns."""
        end = self.shared + pages.size
        assert end <= self.length or not self.room.size, "pages are shared in front of the room"
        self._entries[self.shared : end] = pages
        self.shared = end
        self.length = max(self.length, end)

    def use_room(self) -> Pages:
        """Makes the first page of the room one that the request owns; returns it, [1]."""
        page = self.room[:1]
        assert page.size, "there is room"
        self._entries[self.length] = page.item()
        self.length += 1
        self.room = self.room[1:]
        return page

    def slide(self, first: int, count: int, given_up: int) -> None:
        """Takes `count` pages out, from the `first` on, and puts those of them that the request owns behind the others, for tokens to come.

        Args:
            first: Index of the first one; what is shared ends there or before, apart from what is given up.
            count: How many.
            given_up: How many of them the tree owns; they come first.
        """
        assert max(first, self.shared) == first + given_up <= first + count <= self.length, "what is taken out is there"
        taken = self._entries[first : first + count].copy()
        kept = np.concatenate((self._entries[first + count : self.length], taken[given_up:]))
        self._entries[first : first + kept.size] = kept
        self._entries[first + kept.size : self.length] = 0
        self.length -= given_up
        self.shared = min(self.shared, first)

    def cut_room(self, count: int) -> Pages:
        """Takes up to `count` pages from the end of the room; returns them."""
        kept = max(0, self.room.size - count)
        pages = self.room[kept:]
        self.room = self.room[:kept]
        return pages

    @property
    def last(self) -> int | None:
        """The last page that is not room; None if there is none."""
        return int(self._entries[self.length - 1]) if self.length else None

    @property
    def shared_pages(self) -> Pages:
        """The pages the radix tree owns, a copy."""
        return self._entries[: self.shared].copy()

    @property
    def owned(self) -> Pages:
        """The pages the request owns, a copy."""
        return self._entries[self.shared : self.length].copy()

    @property
    def num_extents(self) -> int:
        """In how many contiguous runs the pages lie, room not counted."""
        return int((np.diff(self._entries[: self.length]) != 1).sum()) + (self.length > 0)
