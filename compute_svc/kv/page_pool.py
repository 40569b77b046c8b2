"""The allocator of KV pages: every page is free or has exactly one owner."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int64]


class PagePool:
    """Hands out pages, contiguous runs of them where it can.

    Free pages are kept as maximal runs, found by either end and by size class (the bit length of their length), so that reserving
    and releasing cost the number of runs they touch and not the number of pages there are.

    Args:
        num_pages: Pages 0 to num_pages - 1, all free.
    """

    def __init__(self, num_pages: int) -> None:
        assert num_pages > 0, "a pool has pages"
        self.num_pages = num_pages
        self._is_free = np.ones(num_pages, dtype=np.bool_)
        self._num_free = 0
        # Runs are [start, end); each is in all three.
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        self._classes: list[dict[int, None]] = [{} for _ in range(num_pages.bit_length() + 1)]
        self._add_run(0, num_pages)

    @property
    def num_free(self) -> int:
        """Pages without an owner."""
        return self._num_free

    def reserve(self, count: int, *, after: int | None = None) -> Pages:
        """Takes free pages; the caller owns them until it releases them.

        The order of preference: the run right behind `after`, so that the owner's last run grows; the smallest size class that
        surely holds them in one run; the largest runs there are.

        Args:
            count: How many; at most `num_free`.
            after: The owner's last page, if it has one.

        Returns:
            [count] int64, rising within each run.
        """
        assert 0 <= count <= self._num_free, f"{count} pages wanted, {self._num_free} free: the caller checks first"
        if count == 0:
            return np.empty(0, dtype=np.int64)
        parts: list[Pages] = []
        if after is not None and after + 1 in self._end_of:
            parts.append(self._take(after + 1, count))
            count -= parts[0].size
        while count:
            parts.append(self._take(self._choose_run(count), count))
            count -= parts[-1].size
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def release(self, pages: Pages) -> None:
        """Gives pages back; the caller owns them no longer.

        Args:
            pages: [n] int64, any order, no page twice, none of them free.
        """
        if pages.size == 0:
            return
        assert not self._is_free[pages].any(), "a page is released twice"
        ordered = np.sort(pages)
        breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
        starts = ordered[np.concatenate(([0], breaks))].tolist()
        ends = (ordered[np.concatenate((breaks - 1, [ordered.size - 1]))] + 1).tolist()
        for start, end in zip(starts, ends, strict=True):
            self._add_run(start, end)

    def assert_owned_once(self, owned: Iterable[Pages]) -> None:
        """Checks that the pages of all owners and the free pages are all pages, each once.

        Args:
            owned: The pages of each owner.
        """
        owners = np.zeros(self.num_pages, dtype=np.int64)
        for pages in owned:
            np.add.at(owners, pages, 1)
        assert not (owners > 1).any(), f"pages with two owners: {np.flatnonzero(owners > 1).tolist()}"
        assert not ((owners == 1) & self._is_free).any(), (
            f"owned pages that are free: {np.flatnonzero((owners == 1) & self._is_free).tolist()}"
        )
        assert not ((owners == 0) & ~self._is_free).any(), f"leaked pages: {np.flatnonzero((owners == 0) & ~self._is_free).tolist()}"
        assert self._num_free == int(self._is_free.sum()), "the count of free pages is off"
        in_runs = sum(end - start for start, end in self._end_of.items())
        assert in_runs == self._num_free and len(self._end_of) == sum(map(len, self._classes)), "the runs are off"

    def _choose_run(self, count: int) -> int:
        # A run of class c has at least 2 ** (c - 1) pages, so one of this class or above holds `count` of them.
        sure = (count - 1).bit_length() + 1
        for size_class in self._classes[sure:]:
            if size_class:
                return next(iter(size_class))
        for size_class in reversed(self._classes[:sure]):
            if size_class:
                return next(iter(size_class))
        raise AssertionError("free pages are in runs")

    def _take(self, start: int, count: int) -> Pages:
        """Takes up to `count` pages from the front of the run that begins at `start`."""
        end = self._end_of[start]
        taken = min(count, end - start)
        self._drop_run(start, end)
        if start + taken < end:
            self._keep_run(start + taken, end)
        self._is_free[start : start + taken] = False
        self._num_free -= taken
        return np.arange(start, start + taken, dtype=np.int64)

    def _add_run(self, start: int, end: int) -> None:
        self._is_free[start:end] = True
        self._num_free += end - start
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
        self._classes[(end - start).bit_length()][start] = None

    def _drop_run(self, start: int, end: int) -> None:
        del self._end_of[start], self._start_of[end], self._classes[(end - start).bit_length()][start]
