"""Ways to reserve KV pages in advance: for the answer that is expected, and for the longest one.

Neither is the default (`COMPUTE_KV_RESERVATION`). Where the pool is the limit, reserving the maximum has 81 % of the pages reserved and
unused and runs 15.8 requests at once, page by page 72. Where the batch is the limit, predicted answers lie in a third of the extents, and
the prefix cache loses by it; no kernel gains by fewer extents today. `python -m tests.bench.scheduling.kv_memory` measures all three.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from compute_svc.kv.page_pool import PagePool, Pages
from compute_svc.scheduler.base import RequestState, SchedulerConfig
from compute_svc.scheduler.batch_slots import Rows
from compute_svc.scheduler.kv_memory import KvMemory

# Room for an answer displaces the prefix cache only until one in so many of the pages that no running request owns is free. In a full
# cache more free pages mean longer runs and fewer hits: where conversations came back for a second turn (tests/bench/scheduling/kv_memory.py, its third
# case) requests had 35 extents with no such part, 10 with an eighth and 18 % fewer cached tokens, 3 with a half and 57 % fewer.
_NOT_OWNED_PER_FREE = 8
_NO_PAGES: Pages = np.empty(0, dtype=np.int64)


def count_extents(pages: Pages) -> int:
    """In how many contiguous runs pages lie, in their order."""
    return int(np.count_nonzero(np.diff(pages) != 1)) + bool(pages.size)


class MaximumMemory(KvMemory):
    """Gives a request the pages of its longest answer at once: what systems without paging did, here for comparison.

    Args:
        config: Sizes.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self.pool = RunPool(config.num_pages)

    def wanted_pages(self, state: RequestState) -> int:
        """As without a reservation for one that slides; else those of its longest answer."""
        wanted = super().wanted_pages(state)
        if wanted < self._pages_for(state.num_tokens):
            return wanted
        # Nothing follows the last token, so nothing reads its KV.
        longest = self._pages_for(state.request.prompt.size + state.request.max_tokens - 1)
        return max(wanted, min(longest, self._most_pages))

    def could_admit(self, state: RequestState, *, without: Sequence[RequestState], headroom: int) -> bool:
        """As without a reservation, but who has all its pages does not grow and needs no headroom."""
        return super().could_admit(state, without=without, headroom=0)

    def admit(self, state: RequestState, *, headroom: int) -> bool:
        """As without a reservation, but who has all its pages does not grow and needs no headroom."""
        return super().admit(state, headroom=0)


class PredictedMemory(KvMemory):
    """Reserves room for the answer that is expected, in one run of pages with those before it where there is one.

    Room remains free: whoever needs pages takes it back, from the requests that arrived last, before a page of the prefix cache is given up
    or anybody is preempted. So the prediction decides where pages lie and not who runs: an error costs a request one more extent. An answer
    that outgrows its prediction is expected to be twice as long, and so on, so that the number of its extents grows with the
    logarithm of the error.

    Room is one run with the pages before it, as long as there is one, and not pieces of several: pieces would be worth no more than pages
    taken one by one, and would leave nothing but pieces to the next.

    Args:
        config: Sizes.
    """

    pool: RunPool

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self.pool = RunPool(config.num_pages)
        # By arrival.
        self._rooms: dict[int, Pages] = {}

    def room(self, state: RequestState) -> Pages:
        """Pages reserved for a request, in the order in which it will get them."""
        return self._rooms.get(state.arrival, _NO_PAGES)

    def grow_all(self, rows: Rows) -> bool:
        """Never: each has room of its own."""
        return not rows.size

    def leave(self, state: RequestState, *, num_trusted: int | None = None) -> None:
        """As without a reservation."""
        self.pool.unreserve(self._rooms.pop(state.arrival, _NO_PAGES))
        super().leave(state, num_trusted=num_trusted)

    def assert_owned_once(self, states: Sequence[RequestState]) -> None:
        """As without a reservation; rooms are those of running requests, and reserved once each."""
        super().assert_owned_once(states)
        assert self._rooms.keys() <= {state.arrival for state in states}, "who runs has room"
        self.pool.assert_reserved(list(self._rooms.values()))

    def _allocate(self, state: RequestState, count: int) -> Pages:
        """Takes pages for a request, from its room if it has some, and reserves room behind them if it has none."""
        room = self._rooms.pop(state.arrival, _NO_PAGES)
        if room.size:
            assert count == 1, "who has room grows page by page"
            self.pool.claim(room[:1])
            self._rooms[state.arrival] = room[1:]
            return room[:1]
        assert state.table is not None, "a running request has a page table"
        self._make_allocatable(count)
        length = state.table.length
        size = self._find_room(count, self._wanted_room(state, length + count))
        last = int(self.tables.entries[state.table.row, length - 1]) if length else None
        pages = self.pool.allocate(count + size, after=last)
        self.pool.reserve(pages[count:])
        self._rooms[state.arrival] = pages[count:]
        return pages[:count]

    def _wanted_room(self, state: RequestState, num_pages: int) -> int:
        """Pages to reserve behind the first `num_pages` of a request."""
        if state.is_sliding:
            return 0
        answer = state.position + state.remaining_tokens
        # Nothing follows the last token, so nothing reads its KV.
        return max(0, min(self._pages_for(state.request.prompt.size + answer - 1), self._most_pages) - num_pages)

    def _find_room(self, count: int, room: int) -> int:
        """How much of the room can be had in one run with the `count` pages before it.

        Effects: evicts pages of the prefix cache if no run is long enough, as long as few pages are free.
        """
        if room == 0:
            return 0
        not_owned = self.num_available - count
        while self.pool.longest_run < count + room:
            evictable = not_owned // _NOT_OWNED_PER_FREE - (self.pool.num_free - count)
            if evictable <= 0:
                break
            evicted = self.tree.evict(min(evictable, count + room - self.pool.longest_run))
            assert evicted.size, "pages that are counted as evictable are given up"
            self.pool.release(evicted)
        return max(0, min(room, self.pool.longest_run - count))

    def _make_allocatable(self, count: int) -> None:
        """Takes pages back until `count` can be allocated: first those reserved, then those of the prefix cache."""
        for arrival in sorted(self._rooms, reverse=True):
            shortage = count - self.pool.num_allocatable
            if shortage <= 0:
                return
            room = self._rooms[arrival]
            kept = max(0, room.size - shortage)
            self._rooms[arrival] = room[:kept]
            self.pool.unreserve(room[kept:])
        shortage = count - self.pool.num_allocatable
        if shortage > 0:
            self.pool.release(self.tree.evict(shortage))


class RunPool(PagePool):
    """Hands out contiguous runs of pages where it can.

    A page is owned, free, or reserved: free, but promised to the one whose tokens would continue there, who gets it without a
    search (`claim`) unless somebody needs it before (`unreserve`).

    Other free pages are kept as maximal runs, found by either end and by length, so that allocating and releasing search among runs
    and not among pages.

    Args:
        num_pages: Pages 0 to num_pages - 1, all free.
    """

    def __init__(self, num_pages: int) -> None:
        super().__init__(num_pages)
        self.num_reserved = 0
        self._is_reserved = np.zeros(num_pages, dtype=np.bool_)
        # Runs are [start, end); each is in all three.
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        self._by_length: list[tuple[int, int]] = []
        self._add_run(0, num_pages)

    @property
    def num_allocatable(self) -> int:
        """Free pages that are not reserved."""
        return self.num_free - self.num_reserved

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
        assert 0 <= count <= self.num_allocatable, f"{count} pages wanted, {self.num_allocatable} allocatable: the caller checks first"
        parts: list[Pages] = [_NO_PAGES]
        if count and after is not None and after + 1 in self._end_of:
            parts.append(self._take(after + 1, count))
            count -= parts[-1].size
        while count:
            parts.append(self._take(self._choose_run(count), count))
            count -= parts[-1].size
        pages = np.concatenate(parts)
        self._is_free[pages] = False
        self.num_free -= pages.size
        return pages

    def release(self, pages: Pages) -> None:
        """Gives pages back; the caller owns them no longer.

        Args:
            pages: [n] int64, any order, no page twice, none of them free.
        """
        assert not self._is_free[pages].any(), "a page is released twice"
        self._is_free[pages] = True
        self.num_free += pages.size
        self._add_pages(pages)

    def reserve(self, pages: Pages) -> None:
        """Makes owned pages free, but keeps them for the one who owned them.

        Args:
            pages: [n] int64, no page twice, none of them free.
        """
        assert not self._is_free[pages].any(), "owned pages are reserved"
        self._is_free[pages] = self._is_reserved[pages] = True
        self.num_free += pages.size
        self.num_reserved += pages.size

    def claim(self, pages: Pages) -> None:
        """Makes pages that were reserved owned ones."""
        assert self._is_reserved[pages].all(), "what is claimed was reserved"
        self._is_free[pages] = self._is_reserved[pages] = False
        self.num_free -= pages.size
        self.num_reserved -= pages.size

    def unreserve(self, pages: Pages) -> None:
        """Makes pages that were reserved free for everybody."""
        assert self._is_reserved[pages].all(), "what is unreserved was reserved"
        self._is_reserved[pages] = False
        self.num_reserved -= pages.size
        self._add_pages(pages)

    def assert_reserved(self, rooms: Sequence[Pages]) -> None:
        """Checks that these pages are reserved, each once, and no others."""
        promised = np.zeros(self.num_pages, dtype=np.int64)
        for pages in rooms:
            np.add.at(promised, pages, 1)
        assert (promised == self._is_reserved).all(), f"pages reserved not once: {np.flatnonzero(promised != self._is_reserved).tolist()}"

    def _assert_free_once(self) -> None:
        assert self.num_free == int(self._is_free.sum()) and self.num_reserved == int(self._is_reserved.sum()), "the counts are off"
        assert not (self._is_reserved & ~self._is_free).any(), "pages reserved are free"
        in_runs = np.zeros(self.num_pages, dtype=np.int64)
        for start, end in self._end_of.items():
            in_runs[start:end] += 1
        assert (in_runs == (self._is_free & ~self._is_reserved)).all(), "the runs are off"
        assert self._by_length == sorted((end - start, start) for start, end in self._end_of.items()), "the lengths of the runs are off"

    def _choose_run(self, count: int) -> int:
        """Start of the shortest run that holds `count` pages; of the longest one if none does."""
        index = bisect_left(self._by_length, (count, 0))
        return self._by_length[min(index, len(self._by_length) - 1)][1]

    def _take(self, start: int, count: int) -> Pages:
        """Takes up to `count` pages from the front of the run that begins at `start`."""
        end = self._end_of[start]
        taken = min(count, end - start)
        self._drop_run(start, end)
        if start + taken < end:
            self._keep_run(start + taken, end)
        return np.arange(start, start + taken, dtype=np.int64)

    def _add_pages(self, pages: Pages) -> None:
        if not pages.size:
            return
        ordered = np.sort(pages)
        breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
        starts = ordered[np.concatenate(([0], breaks))].tolist()
        ends = (ordered[np.concatenate((breaks - 1, [ordered.size - 1]))] + 1).tolist()
        for start, end in zip(starts, ends, strict=True):
            self._add_run(start, end)

    def _add_run(self, start: int, end: int) -> None:
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
