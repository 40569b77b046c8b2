"""The allocator of KV pages: every page is free or has exactly one owner."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from operator import itemgetter

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int64]

_LENGTH = itemgetter(0)


class PagePool:
    """Hands out pages, contiguous runs of them where it can.

    A page is owned, free, or reserved: free, but promised to the one whose tokens would continue there, who gets it without a
    search (`claim`) unless somebody needs it before (`unreserve`).

    Other free pages are kept as maximal runs, found by either end and by length, so that allocating and releasing search among runs
    and not among pages.

    Args:
        num_pages: Pages 0 to num_pages - 1, all free.
    """

    def __init__(self, num_pages: int) -> None:
        assert num_pages > 0, "a pool has pages"
        self.num_pages = num_pages
        self.num_reserved = 0
        self._is_reserved = np.zeros(num_pages, dtype=np.bool_)
        self._is_free = np.ones(num_pages, dtype=np.bool_)
        # In runs, reserved pages excluded.
        self._num_in_runs = 0
        # Runs are [start, end); each is in all three.
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        self._by_length: list[tuple[int, int]] = []
        self._add_run(0, num_pages)

    @property
    def num_free(self) -> int:
        """Pages without an owner, those reserved included."""
        return self._num_in_runs + self.num_reserved

    @property
    def num_allocatable(self) -> int:
        """Free pages that are not reserved."""
        return self._num_in_runs

    @property
    def longest_run(self) -> int:
        """Pages of the longest run that can be allocated."""
        return self._by_length[-1][0] if self._by_length else 0

    def allocate(self, count: int, *, after: int | None = None) -> Pages:
        """Takes free pages; the caller owns them until it releases them.

        The order of preference: the run right behind `after`, so that the owner's last run grows; the shortest run that holds them
        all; the longest runs there are.

        Args:
            count: How many; at most `num_allocatable`.
            after: The owner's last page, if it has one.

        Returns:
            [count] int64, rising within each run.
        """
        assert 0 <= count <= self._num_in_runs, f"{count} pages wanted, {self._num_in_runs} allocatable: the caller checks first"
        parts: list[Pages] = []
        start = None if after is None else after + 1
        while count:
            if start is None or start not in self._end_of:
                start = self._choose_run(count)
            part = self._take(start, count)
            parts.append(part)
            count -= part.size
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def release(self, pages: Pages) -> None:
        """Gives pages back; the caller owns them no longer.

        Args:
            pages: [n] int64, any order, no page twice, none of them free.
        """
        assert not self._is_free[pages].any(), "a page is released twice"
        self._add_pages(pages)

    def reserve(self, pages: Pages) -> None:
        """Makes owned pages free, but keeps them for the one who owned them.

        Args:
            pages: [n] int64, no page twice, none of them free.
        """
        assert not self._is_free[pages].any(), "owned pages are reserved"
        self._is_free[pages] = True
        self._is_reserved[pages] = True
        self.num_reserved += pages.size

    def claim(self, pages: Pages) -> None:
        """Makes pages that were reserved owned ones."""
        assert self._is_reserved[pages].all(), "what is claimed was reserved"
        self._is_free[pages] = False
        self._is_reserved[pages] = False
        self.num_reserved -= pages.size

    def unreserve(self, pages: Pages) -> None:
        """Makes pages that were reserved free for everybody."""
        assert self._is_reserved[pages].all(), "what is unreserved was reserved"
        self._is_reserved[pages] = False
        self.num_reserved -= pages.size
        self._add_pages(pages)

    def _add_pages(self, pages: Pages) -> None:
        if not pages.size:
            return
        ordered = np.sort(pages)
        for run in np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1):
            self._add_run(int(run[0]), int(run[-1]) + 1)

    def assert_owned_once(self, owned: Iterable[Pages], reserved: Iterable[Pages] = ()) -> None:
        """Checks that the pages of all owners and the free pages are all pages, each once.

        Args:
            owned: The pages of each owner.
            reserved: The pages reserved for each.
        """
        owners = np.zeros(self.num_pages, dtype=np.int64)
        for pages in owned:
            np.add.at(owners, pages, 1)
        assert not (owners > 1).any(), f"pages with two owners: {np.flatnonzero(owners > 1).tolist()}"
        assert not ((owners == 1) & self._is_free).any(), (
            f"owned pages that are free: {np.flatnonzero((owners == 1) & self._is_free).tolist()}"
        )
        assert not ((owners == 0) & ~self._is_free).any(), f"leaked pages: {np.flatnonzero((owners == 0) & ~self._is_free).tolist()}"
        promised = np.zeros(self.num_pages, dtype=np.int64)
        for pages in reserved:
            np.add.at(promised, pages, 1)
        assert (promised == self._is_reserved).all(), f"pages reserved not once: {np.flatnonzero(promised != self._is_reserved).tolist()}"
        assert not (self._is_reserved & ~self._is_free).any() and self.num_reserved == int(self._is_reserved.sum()), (
            "pages reserved are free"
        )
        in_runs = np.zeros(self.num_pages, dtype=np.int64)
        for start, end in self._end_of.items():
            in_runs[start:end] += 1
        assert (in_runs == (self._is_free & ~self._is_reserved)).all() and self._num_in_runs == int(in_runs.sum()), "the runs are off"
        assert self._by_length == sorted((end - start, start) for start, end in self._end_of.items()), "the lengths of the runs are off"
        assert all(start < end for start, end in self._end_of.items()), "a run has pages"

    def _choose_run(self, count: int) -> int:
        """Start of the shortest run that holds `count` pages; of the longest one if none does."""
        index = bisect_left(self._by_length, count, key=_LENGTH)
        return self._by_length[min(index, len(self._by_length) - 1)][1]

    def _take(self, start: int, count: int) -> Pages:
        """Takes up to `count` pages from the front of the run that begins at `start`."""
        end = self._end_of[start]
        taken = min(count, end - start)
        self._drop_run(start, end)
        if start + taken < end:
            self._keep_run(start + taken, end)
        self._is_free[start : start + taken] = False
        self._num_in_runs -= taken
        return np.arange(start, start + taken, dtype=np.int64)

    def _add_run(self, start: int, end: int) -> None:
        self._is_free[start:end] = True
        self._num_in_runs += end - start
        before = self._start_of.get(start)
        if before is not None:
            self._drop_run(before, start)
            start = before
        behind = self._end_of.get(end)
        if behind is not None:
            self._drop_run(end, behind)
            end = behind
        self._keep_run(start, end)

    def _keep_run(self, start: int, end: int) -> None:
        self._end_of[start] = end
        self._start_of[end] = start
        insort(self._by_length, (end - start, start))

    def _drop_run(self, start: int, end: int) -> None:
        del self._end_of[start], self._start_of[end]
        del self._by_length[bisect_left(self._by_length, (end - start, start))]
