"""Gives requests the pages they need, from the free ones and from the prefix cache, and takes them back."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from enum import Enum, auto

from compute_svc.kv.page_pool import PagePool, Pages
from compute_svc.kv.page_table import PageTable, PageTables
from compute_svc.kv.radix_node import Node, Tokens, locks_of
from compute_svc.kv.radix_tree import Prefix, RadixTree
from compute_svc.scheduler.base import RequestState, SchedulerConfig
from compute_svc.scheduler.prefix_ends import PrefixEnds
from triserve.rpc.errors import Overloaded

# Room for an answer displaces the prefix cache only until one in so many of the pages that no running request owns is free. In a full
# cache more free pages mean longer runs and fewer hits: where conversations came back for a second turn (tests/bench/kv_memory.py, its third
# case) requests had 35 extents with no such part, 10 with an eighth and 18 % fewer cached tokens, 3 with a half and 57 % fewer.
_NOT_OWNED_PER_FREE = 8


class Reservation(Enum):
    """What an admitted request gets besides the pages of its known tokens.

    MAXIMUM: Pages for max_tokens, which nobody can take from it: what systems without paging did, here for comparison.
    PAGES: Nothing; it grows page by page.
    PREDICTED: Room for the answer that is expected, in one run with the rest where there is one. Others can have it back.
    """

    MAXIMUM = auto()
    PAGES = auto()
    PREDICTED = auto()


class KvMemory:
    """All pages of a replica and who owns them: the pool, the prefix cache or a running request.

    Pages reserved for expected answers remain free: whoever needs pages takes them back, from the requests that arrived last, before a
    page of the prefix cache is given up or anybody is preempted. So the prediction decides where pages lie and not who runs: an error
    costs a request one more extent. An answer that outgrows its prediction is expected to be twice as long, and so on, so that the
    number of its extents grows with the logarithm of the error.

    Room is one run with the pages before it, as long as there is one, and not pieces of several: pieces would be worth no more than pages
    taken one by one, and would leave nothing but pieces to the next.

    Args:
        config: Sizes.
        reservation: What requests get in advance.
    """

    def __init__(self, config: SchedulerConfig, reservation: Reservation = Reservation.PREDICTED) -> None:
        self.reservation = reservation
        self._page_size = config.page_size_tokens
        self._num_pages = config.num_pages
        self.pool = PagePool(config.num_pages)
        self.tree = RadixTree(config.page_size_tokens)
        self.ends = PrefixEnds(self.tree, self._page_size)
        self.tables = PageTables(config.max_running_requests, min(config.num_pages, self._pages_for(config.max_request_tokens)))
        self._window = config.window if config.slides else None
        # Of a request that holds all its known tokens when it is admitted; a longer one slides from the start.
        self._most_pages = self._sliding_pages = int(self.tables.entries.shape[1])
        if config.slides:
            self._sliding_pages = self._pages_for(config.sliding_tokens)
            self._most_pages = max(self._sliding_pages, config.num_pages // 2)
        self._chunk_tokens = config.chunk_tokens
        self.num_returns = 0
        self.looked_up_tokens = 0
        self.hit_tokens = 0
        self.copied_tokens = 0
        # Running requests, in the order of arrival.
        self._running: list[RequestState] = []
        # Pages to copy before the next step computes: for whom, from and to.
        self._copies: list[tuple[RequestState, int, int]] = []

    @property
    def num_available(self) -> int:
        """Pages a request can have: free ones, and those the prefix cache alone holds."""
        return self.pool.num_free + self.tree.evictable_pages

    def wanted_pages(self, state: RequestState) -> int:
        """Pages that a waiting request is to hold, shared ones among them, when it is admitted."""
        num_pages = self._pages_for(state.num_tokens)
        return num_pages if num_pages <= self._most_pages else self._sliding_pages

    def could_admit(self, state: RequestState, *, without: Sequence[RequestState], headroom: int) -> bool:
        """Whether a waiting request would get its pages if some running ones gave up theirs.

        What those share with others, or is pinned, does not become free; and what of it the waiting one shares too, it does not need.
        """
        num_pages = self.wanted_pages(state)
        known = self._sharable(state, num_pages)
        locks = locks_of(self._holdings(other)[1] for other in without)
        held = self.tree.count_held(state.request.tenant, known, locks)
        available = self.num_available
        available += sum(node.pages.size for node, count in locks.items() if node.locks == count and not node.pins)
        for other in without:
            table, _ = self._holdings(other)
            available += table.length - table.shared
            if self.reservation is Reservation.MAXIMUM:
                available += table.room.size
        room = self._wanted_room(state, num_pages) if self.reservation is Reservation.MAXIMUM else headroom
        return num_pages - held + room <= available

    def admit(self, state: RequestState, *, headroom: int) -> bool:
        """Gives a request pages for all its known tokens, shared ones where the prefix is cached.

        Where only the first tokens of a page are cached, or computed by a running request, that page is copied, so that it has two
        owners who go on in different ways. The last known token is always left to compute, because its logits are wanted.

        Args:
            state: A request without pages.
            headroom: Pages that must remain available for others.

        Returns:
            Whether there were enough; if not, nothing has changed.

        Effects: sets the request's table, prefix, num_found_pages and num_computed.
        """
        num_pages = self.wanted_pages(state)
        state.is_sliding = num_pages < self._pages_for(state.num_tokens)
        known = self._sharable(state, num_pages)
        prefix = self._lock_prefix(state.request.tenant, known)
        missing = num_pages - prefix.pages.size
        # Who has room for the maximum does not grow and needs no headroom.
        wanted = missing + (self._wanted_room(state, num_pages) if self.reservation is Reservation.MAXIMUM else headroom)
        if wanted > self.num_available:
            self._unlock(prefix.node)
            return False
        table = self.tables.open()
        table.share(prefix.pages)
        state.table = table
        state.prefix = prefix.node
        state.num_found_pages = min(state.num_found_pages, prefix.pages.size)
        state.num_computed = prefix.pages.size * self._page_size
        partial = self.ends.find_partial(prefix.node, known[state.num_computed :], [copy[0] for copy in self._copies])
        self._extend(state, table, missing)
        if partial is not None:
            # Its page may have been given up just now, even to this request: what it holds is there until the step computes.
            self._copies.append((state, partial.page, int(table.owned[0])))
            state.num_computed += partial.num_tokens
            self.copied_tokens += partial.num_tokens
        self.looked_up_tokens += state.num_tokens
        self.hit_tokens += state.num_computed
        insort(self._running, state, key=_arrival)
        self.ends.enter(state)
        return True

    @property
    def copies(self) -> list[tuple[int, int]]:
        """Pages to copy before the next step computes, (from, to): all are read before the first is written."""
        return [(source, target) for _, source, target in self._copies]

    def is_to_be_copied(self, state: RequestState) -> bool:
        """Whether a page of the request is among the copies to be made, so that what counts as computed is not there yet."""
        return any(copy[0] is state for copy in self._copies)

    def take_copies(self) -> list[tuple[int, int]]:
        """The copies, which are the caller's to make from now on."""
        copies = self.copies
        self._copies = []
        return copies

    @property
    def max_pinned_pages(self) -> int:
        """Most pages of pinned prefixes: half of all, and never so many that the longest request would not fit beside them."""
        return min(self._num_pages // 2, self._num_pages - self._most_pages)

    def pin(self, tenant: str, tokens: Tokens) -> bool:
        """Keeps a prefix in the cache until it is unpinned.

        Returns:
            Whether all of it is cached; if not, nothing is pinned.

        Raises:
            Overloaded: Too much would be pinned.
        """
        pages = self.tree.pinned_pages + self.tree.unpinned_pages(tenant, tokens)
        if pages > self.max_pinned_pages:
            raise Overloaded(
                f"{self.tree.pinned_pages} pages are pinned and {pages} would be, the limit is {self.max_pinned_pages}: half of the KV "
                "pages, less if the longest request needs more than the other half",
                field="token_ids",
            )
        return self.tree.pin(tenant, tokens)

    def grow(self, state: RequestState) -> bool:
        """Makes sure that the next token to compute has a page.

        Returns:
            False if no page is free or evictable.
        """
        table, _ = self._holdings(state)
        if state.kv_length < table.length * self._page_size:
            return True
        if table.room.size:
            page = table.use_room()
            if self.reservation is Reservation.PREDICTED:
                self.pool.claim(page)
            return True
        if not self.num_available:
            return False
        self._extend(state, table, 1)
        return True

    def keep_computed(self, state: RequestState) -> None:
        """Hands whole computed pages to the prefix cache, so that others can share them from the next step on.

        Where the cache has such a page already the request goes on with the cache's and gives its own back.
        """
        table, prefix = self._holdings(state)
        first, end = table.shared, state.num_computed // self._page_size
        if state.is_sliding:
            end = min(end, self._chunk_tokens // self._page_size)
        if end <= first:
            return
        own = table.owned[: end - first]
        longer = self.tree.insert(prefix, state.tokens[first * self._page_size : end * self._page_size], own)
        table.share(longer.pages)
        self.ends.leave(state)
        state.prefix = longer.node
        self.ends.enter(state)
        duplicates = own[own != longer.pages]
        if duplicates.size:
            self.pool.release(duplicates)
            self.num_returns += 1

    def slide(self, state: RequestState) -> None:
        """Drops what a request does not need any more, now that it has computed more; its pages take the tokens to come.

        What it shares with the prefix cache is given up when all of it but the first chunk can be: a prefix is locked as a whole.
        """
        # What is to be pinned stays whole; it was admitted with pages for all of it.
        if self._window is None or state.request.pins:
            return
        dropped = self._window.droppable_tokens(state.num_computed)
        if dropped <= state.dropped_tokens:
            return
        table, prefix = self._holdings(state)
        first = self._chunk_tokens // self._page_size
        end = first + (dropped - state.dropped_tokens) // self._page_size
        if end < table.shared:
            return
        self.ends.leave(state)
        state.is_sliding = True
        given_up = max(0, table.shared - first)
        if given_up:
            state.prefix = self.tree.lock_match(state.request.tenant, state.tokens[: self._chunk_tokens]).node
            self._unlock(prefix)
            self.num_returns += 1
        table.slide(first, end - first, given_up)
        state.dropped_tokens = dropped

    def leave(self, state: RequestState) -> None:
        """Takes all pages of a request back; what it computed stays in the prefix cache as long as there is room.

        Effects: clears the request's table, prefix, num_computed and dropped_tokens.
        """
        self.keep_computed(state)
        self._take_back(state)

    def leave_nothing(self, state: RequestState, *, num_trusted: int | None = None) -> None:
        """Takes all pages of a request back; what it computed and has not handed to the prefix cache yet is never used again.

        Args:
            state: The request; effects on it as those of `leave`.
            num_trusted: The cache forgets its tokens behind so many pages, whoever computed them, and all that lies behind those. Who holds
                them goes on with them. None = it forgets nothing.
        """
        self._take_back(state)
        if num_trusted is not None:
            self.tree.discard(state.request.tenant, state.tokens[: state.num_tokens], num_trusted)
            self.pool.release(self.tree.take_given_up())

    def shared_pages(self, state: RequestState) -> Pages:
        """The pages, in order, that a running request shares with the prefix cache, a copy."""
        table, _ = self._holdings(state)
        return table.shared_pages

    def unpin(self, tenant: str, tokens: Tokens) -> bool:
        """Undoes `pin`; returns whether it was pinned. What nobody holds can be had from now on."""
        was_pinned = self.tree.unpin(tenant, tokens)
        self.num_returns += was_pinned
        return was_pinned

    def assert_owned_once(self, states: list[RequestState]) -> None:
        """Checks that every page is free, the cache's or exactly one request's, and the counts that depend on it.

        Args:
            states: All running requests.
        """
        nodes = [*self.tree.nodes(), *self.tree.detached]
        tables = [state.table for state in states if state.table is not None]
        rooms = [table.room for table in tables]
        owned: list[Pages] = [node.pages for node in nodes]
        owned += [table.owned for table in tables]
        if self.reservation is Reservation.PREDICTED:
            self.pool.assert_owned_once(owned, rooms)
        else:
            self.pool.assert_owned_once(owned + rooms)
        assert self.tree.num_pages == sum(node.pages.size for node in nodes), "the tree's count of pages is off"
        assert self.tree.evictable_pages == sum(node.pages.size for node in nodes if not (node.locks or node.pins)), (
            "the count of evictable pages is off"
        )
        assert self.tree.pinned_pages <= self.max_pinned_pages, "the longest request fits beside what is pinned"
        roots = sum(node.locks for node in nodes if node.parent is None)
        assert roots == sum(state.prefix is not None for state in states), "each request with pages holds one lock"
        assert {id(state) for state in self._running} == {id(state) for state in states}, "the running requests are known"
        assert self._running == sorted(self._running, key=_arrival), "in the order of arrival"

    def _take_back(self, state: RequestState) -> None:
        table, prefix = self._holdings(state)
        if self.reservation is Reservation.PREDICTED:
            self.pool.unreserve(table.room)
        else:
            self.pool.release(table.room)
        self.pool.release(table.owned)
        self._copies = [copy for copy in self._copies if copy[0] is not state]
        self.ends.leave(state)
        self._unlock(prefix)
        self.tables.close(table)
        self._running.remove(state)
        state.table = None
        state.prefix = None
        state.num_computed = 0
        state.dropped_tokens = 0
        self.num_returns += 1

    def _unlock(self, node: Node) -> None:
        self.tree.unlock(node)
        self.pool.release(self.tree.take_given_up())

    def _lock_prefix(self, tenant: str, known: Tokens) -> Prefix:
        """The longest cached prefix, locked; what running requests have computed of it enters the cache before."""
        while True:
            prefix = self.tree.lock_match(tenant, known)
            start = prefix.pages.size * self._page_size
            other = self.ends.find_whole(prefix.node, start, known[start : start + self._page_size])
            if other is None:
                return prefix
            self.keep_computed(other)
            self._unlock(prefix.node)

    def _sharable(self, state: RequestState, num_pages: int) -> Tokens:
        """What a request that gets so many pages may find in the prefix cache: all but the last token, or the first chunk if it slides."""
        known = state.tokens[: state.num_tokens - 1]
        return known[: self._chunk_tokens] if num_pages < self._pages_for(state.num_tokens) else known

    def _holdings(self, state: RequestState) -> tuple[PageTable, Node]:
        assert state.table is not None and state.prefix is not None, "a running request has a page table and a locked prefix"
        return state.table, state.prefix

    def _extend(self, state: RequestState, table: PageTable, count: int) -> None:
        """Adds pages the request owns, and room behind them."""
        room = self._wanted_room(state, table.length + count)
        if self.reservation is Reservation.MAXIMUM:
            self._make_allocatable(count + room)
        else:
            self._make_allocatable(count)
            room = self._find_room(count, room)
        pages = self.pool.allocate(count + room, after=table.last)
        table.append(pages[:count])
        table.room = pages[count:]
        if self.reservation is Reservation.PREDICTED:
            self.pool.reserve(pages[count:])

    def _wanted_room(self, state: RequestState, num_pages: int) -> int:
        """Pages to reserve behind the first `num_pages` of a request."""
        if self.reservation is Reservation.PAGES or state.is_sliding:
            return 0
        answer = state.request.max_tokens
        if self.reservation is Reservation.PREDICTED:
            expected = state.predicted_tokens
            assert expected > 0, "an answer has a token"
            # It is not over, so there is one token more at least.
            while expected <= state.position:
                expected *= 2
            answer = min(answer, expected)
        # Nothing follows the last token, so nothing reads its KV.
        return max(0, min(self._pages_for(state.request.prompt.size + answer - 1), self._most_pages) - num_pages)

    def _find_room(self, count: int, room: int) -> int:
        """How much of the room can be had in one run with the `count` pages before it.

        Effects: evicts pages of the prefix cache if no run is long enough, as long as few pages are free.
        """
        if not room:
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
        holders = reversed(self._running)
        while (shortage := count - self.pool.num_allocatable) > 0 and self.pool.num_reserved:
            table, _ = self._holdings(next(holders))
            self.pool.unreserve(table.cut_room(shortage))
        self.pool.release(self.tree.evict(max(0, shortage)))

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)


def _arrival(state: RequestState) -> int:
    return state.arrival
