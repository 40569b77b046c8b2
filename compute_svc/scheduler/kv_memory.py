"""Gives requests the pages they need, from the free ones and from the prefix cache, and takes them back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compute_svc.kv.page_pool import PagePool, Pages
from compute_svc.kv.page_table import PageTable
from compute_svc.kv.radix_node import Node, Tokens, locks_of
from compute_svc.kv.radix_tree import Prefix, RadixTree
from compute_svc.scheduler.base import RequestState, SchedulerConfig
from compute_svc.scheduler.batch_slots import BatchSlots, Rows
from triserve.rpc.errors import Overloaded


class KvMemory:
    """All pages of a replica and who owns them: the pool, the prefix cache or a running request.

    A request is admitted with the pages of its known tokens and grows page by page. Other ways to reserve pages are in `reservation.py`.

    Args:
        config: Sizes.

    Attributes:
        slots: Where running requests are in the batch.
        num_returns: Rises whenever there may be more pages for others.
        looked_up_tokens: Known tokens of all requests that were admitted, and `hit_tokens` those that were cached.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._page_size = config.page_size_tokens
        self._num_pages = config.num_pages
        self.pool = PagePool(config.num_pages)
        self.tree = RadixTree(config.page_size_tokens)
        pages_per_row = min(config.num_pages, self._pages_for(config.max_request_tokens))
        self.slots = BatchSlots(config.max_running_requests, pages_per_row)
        self.tables = self.slots.tables
        self._window = config.window if config.slides else None
        self._sliding_pages = self._pages_for(config.sliding_tokens) if config.slides else 0
        # Of a request that holds all its known tokens when it is admitted; a longer one slides from the start.
        self._most_pages = max(self._sliding_pages, config.num_pages // 2) if config.slides else pages_per_row
        self.num_returns = 0
        self.looked_up_tokens = 0
        self.hit_tokens = 0

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
        lost = locks_of(self._holdings(other)[1] for other in without)
        freed = sum(count == node.locks and not node.pins and node.parent is not None for node, count in lost.items())
        freed += sum(table.length - table.shared for table, _ in map(self._holdings, without))
        held = self.tree.count_held(state.request.tenant, self._shareable(state), lost)
        return self.wanted_pages(state) - held + headroom <= self.num_available + freed

    def admit(self, state: RequestState, *, headroom: int) -> bool:
        """Gives a request pages for all its known tokens, shared ones where the prefix is cached, and a batch slot.

        The last known token is always left to compute, because its logits are wanted.

        Args:
            state: A request without pages.
            headroom: Pages that must remain available for others.

        Returns:
            Whether there were enough; if not, nothing has changed.

        Effects: sets the request's table, prefix, is_sliding, num_found_pages and num_computed.
        """
        prefix = self._lock_prefix(state)
        missing = self.wanted_pages(state) - prefix.pages.size
        if missing + headroom > self.num_available:
            self._unlock(prefix.node)
            return False
        state.is_sliding = self._slides(state)
        state.table, state.prefix = self.slots.enter(state), prefix.node
        state.table.share(prefix.pages)
        state.num_found_pages = min(state.num_found_pages, prefix.pages.size)
        state.num_computed = prefix.pages.size * self._page_size
        state.table.append(self._allocate(state, missing))
        self.looked_up_tokens += state.num_tokens
        self.hit_tokens += state.num_computed
        return True

    def grow(self, state: RequestState) -> bool:
        """Makes sure that the next token to compute has a page.

        Returns:
            False if no page is free or evictable.
        """
        table, _ = self._holdings(state)
        if state.kv_length < table.length * self._page_size:
            return True
        if not self.num_available:
            return False
        table.append(self._allocate(state, 1))
        return True

    def make_room(self, state: RequestState, wanted: int) -> int:
        """How many tokens behind the computed ones have pages, up to so many; takes pages that are available, and nobody's."""
        table, _ = self._holdings(state)
        while (room := table.length * self._page_size - state.kv_length) < wanted and self.num_available and not state.is_sliding:
            table.append(self._allocate(state, 1))
        return min(room, wanted)

    def grow_all(self, rows: Rows) -> bool:
        """Gives each of some running requests, by batch slot, a page more.

        Returns:
            False if there are not so many; then nobody has got one.
        """
        if not rows.size:
            return True
        if rows.size > self.num_available:
            return False
        self._evict_for(rows.size)
        self.tables.entries[rows, self.tables.lengths[rows]] = self.pool.allocate(rows.size)
        self.tables.lengths[rows] += 1
        return True

    def keep_computed(self, state: RequestState) -> None:
        """Hands whole computed pages to the prefix cache, so that others can share them from now on.

        Prompts are handed over as they are computed, for those that wait for them; answers when somebody needs them or the request leaves.
        Where the cache has such a page already the request goes on with the cache's and gives its own back.
        """
        table, prefix = self._holdings(state)
        first, end = table.shared, state.num_computed // self._page_size
        if self._window is not None and state.is_sliding:
            end = min(end, self._window.chunk_tokens // self._page_size)
        if end <= first:
            return
        own = table.owned_to(end)
        longer = self.tree.insert(prefix, state.tokens[first * self._page_size : end * self._page_size], own)
        table.share(longer.pages)
        state.prefix = longer.node
        if longer.pages is not own:
            self.pool.release(own[own != longer.pages])
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
        first = self._window.chunk_tokens // self._page_size
        end = first + (dropped - state.dropped_tokens) // self._page_size
        if end < table.shared:
            return
        state.is_sliding = True
        given_up = max(0, table.shared - first)
        if given_up:
            state.prefix = self.tree.lock_match(state.request.tenant, state.tokens[: self._window.chunk_tokens]).node
            self._unlock(prefix)
            self.num_returns += 1
        table.slide(first, end - first, given_up)
        state.dropped_tokens = dropped

    def leave(self, state: RequestState, *, num_trusted: int | None = None) -> None:
        """Takes all pages of a request back; what it computed stays in the prefix cache as long as there is room.

        Args:
            state: The request.
            num_trusted: The cache forgets its tokens behind so many pages, whoever computed them, and all that lies behind those. Who holds
                them goes on with them. None = it forgets nothing.

        Effects: clears the request's table, prefix, num_computed and dropped_tokens.
        """
        self.keep_computed(state)
        table, prefix = self._holdings(state)
        self.pool.release(table.owned)
        self.slots.leave(state, table)
        self._unlock(prefix)
        if num_trusted is not None:
            self.pool.release(self.tree.discard(state.request.tenant, state.tokens[: state.num_tokens], num_trusted))
        state.table = state.prefix = None
        state.num_computed = state.dropped_tokens = 0
        self.num_returns += 1

    def shared_pages(self, state: RequestState) -> Pages:
        """The pages, in order, that a running request shares with the prefix cache, a copy."""
        return self._holdings(state)[0].shared_pages

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

    def unpin(self, tenant: str, tokens: Tokens) -> bool:
        """Undoes `pin`; returns whether it was pinned. What nobody holds can be had from now on."""
        was_pinned = self.tree.unpin(tenant, tokens)
        self.num_returns += was_pinned
        return was_pinned

    def assert_owned_once(self, states: Sequence[RequestState]) -> None:
        """Checks that every page is free, the cache's or exactly one running request's, and the counts that depend on it."""
        nodes = [*self.tree.nodes(), *self.tree.detached]
        holdings = [self._holdings(state) for state in states]
        self.pool.assert_owned_once([np.array([node.page for node in nodes], dtype=np.int64), *(table.owned for table, _ in holdings)])
        self.tree.assert_consistent(node for _, node in holdings)
        assert self.tree.pinned_pages <= self.max_pinned_pages, "the longest request fits beside what is pinned"
        assert {id(state) for state in self.slots.states if state is not None} == {id(state) for state in states}, "who runs has a slot"

    def _lock_prefix(self, state: RequestState) -> Prefix:
        """The longest prefix of a waiting request that anybody has computed in whole pages, cached now and locked."""
        known = self._shareable(state)
        while True:
            prefix = self.tree.lock_match(state.request.tenant, known)
            start = prefix.pages.size * self._page_size
            end = start + self._page_size
            ahead = (
                other
                for other in self.slots.states
                if other is not None and other.prefix is prefix.node and not other.is_sliding and other.num_computed >= end <= known.size
            )
            other = next((other for other in ahead if (other.tokens[start:end] == known[start:end]).all()), None)
            if other is None:
                return prefix
            self.keep_computed(other)
            self._unlock(prefix.node)

    def _slides(self, state: RequestState) -> bool:
        return self._window is not None and self.wanted_pages(state) < self._pages_for(state.num_tokens)

    def _shareable(self, state: RequestState) -> Tokens:
        """What of a waiting request may be found in the cache."""
        known = state.tokens[: state.reusable_tokens]
        return known[: self._window.chunk_tokens] if self._window is not None and self._slides(state) else known

    def _allocate(self, state: RequestState, count: int) -> Pages:
        """Takes pages for a request; so many are available."""
        self._evict_for(count)
        return self.pool.allocate(count)

    def _evict_for(self, count: int) -> None:
        shortage = count - self.pool.num_free
        if shortage > 0:
            self.pool.release(self.tree.evict(shortage))

    def _unlock(self, node: Node) -> None:
        self.pool.release(self.tree.unlock(node))

    def _holdings(self, state: RequestState) -> tuple[PageTable, Node]:
        assert state.table is not None and state.prefix is not None, "a running request has a page table and a locked prefix"
        return state.table, state.prefix

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)
