"""The allocator of KV pages: every page is free or has exactly one owner."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int64]


class PagePool:
    """Hands out pages, those released last first: what was touched last may still be in a CPU's caches.

    Args:
        num_pages: Pages 0 to num_pages - 1, all free.

    Attributes:
        num_free: Pages without an owner.
    """

    def __init__(self, num_pages: int) -> None:
        assert num_pages > 0, "a pool has pages"
        self.num_pages = num_pages
        self.num_free = num_pages
        # The first `num_free` are free; the last of them is handed out next.
        self._stack = np.arange(num_pages - 1, -1, -1, dtype=np.int64)
        self._is_free = np.ones(num_pages, dtype=np.bool_)

    def allocate(self, count: int) -> Pages:
        """Takes free pages; the caller owns them until it releases them.

        Args:
            count: How many; at most `num_free`.

        Returns:
            [count] int64.
        """
        assert 0 <= count <= self.num_free, f"{count} pages wanted, {self.num_free} free: the caller checks first"
        end, self.num_free = self.num_free, self.num_free - count
        pages = self._stack[self.num_free : end][::-1].copy()
        self._is_free[pages] = False
        return pages

    def release(self, pages: Pages) -> None:
        """Gives pages back; the caller owns them no longer.

        Args:
            pages: [n] int64, any order, no page twice, none of them free.
        """
        assert not self._is_free[pages].any(), "a page is released twice"
        self._is_free[pages] = True
        self._stack[self.num_free : self.num_free + pages.size] = pages[::-1]
        self.num_free += pages.size

    def assert_owned_once(self, owned: Iterable[Pages]) -> None:
        """Checks that the pages of all owners and the free pages are all pages, each once."""
        owners = np.zeros(self.num_pages, dtype=np.int64)
        for pages in owned:
            np.add.at(owners, pages, 1)
        for what, wrong in (
            ("pages with two owners", owners > 1),
            ("owned pages that are free", (owners == 1) & self._is_free),
            ("leaked pages", (owners == 0) & ~self._is_free),
        ):
            assert not wrong.any(), f"{what}: {np.flatnonzero(wrong).tolist()}"
        self._assert_free_once()

    def _assert_free_once(self) -> None:
        assert sorted(self._stack[: self.num_free].tolist()) == np.flatnonzero(self._is_free).tolist(), "the stack of free pages is off"
