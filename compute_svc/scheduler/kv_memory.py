"""Gives requests the pages they need, from the free ones and from the prefix cache, and takes them back."""

from __future__ import annotations

from compute_svc.kv.page_pool import PagePool, Pages
from compute_svc.kv.page_table import PageTable, PageTables
from compute_svc.kv.radix_tree import Node, RadixTree
from compute_svc.scheduler.base import RequestState, SchedulerConfig


class KvMemory:
    """All pages of a replica and who owns them: the pool, the prefix cache or a running request.

    Args:
        config: Sizes.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._page_size = config.page_size_tokens
        self.pool = PagePool(config.num_pages)
        self.tree = RadixTree(config.page_size_tokens)
        self.tables = PageTables(config.max_running_requests, self._pages_for(config.max_request_tokens))
        self.num_returns = 0

    @property
    def num_available(self) -> int:
        """Pages a request can have: free ones, and those the prefix cache alone holds."""
        return self.pool.num_free + self.tree.evictable_pages

    def admit(self, state: RequestState, *, headroom: int) -> bool:
        """Gives a request pages for all its known tokens, shared ones where the prefix is cached.

        The last known token is always left to compute, because its logits are wanted.

        Args:
            state: A request without pages.
            headroom: Pages that must remain available for others.

        Returns:
            Whether there were enough; if not, nothing has changed.

        Effects: sets the request's table, prefix and num_computed.
        """
        prefix = self.tree.lock_match(state.request.tenant, state.tokens[: state.num_tokens - 1])
        missing = self._pages_for(state.num_tokens) - prefix.pages.size
        if missing + headroom > self.num_available:
            self.tree.unlock(prefix.node)
            return False
        table = self.tables.open()
        table.share(prefix.pages)
        table.append(self._take(missing, after=table.last))
        state.table = table
        state.prefix = prefix.node
        state.num_computed = prefix.pages.size * self._page_size
        return True

    def grow(self, state: RequestState) -> bool:
        """Makes sure that the next token to compute has a page.

        Returns:
            False if there is none to be had.
        """
        table, _ = self._holdings(state)
        if state.num_computed < table.length * self._page_size:
            return True
        if not self.num_available:
            return False
        table.append(self._take(1, after=table.last))
        return True

    def keep_computed(self, state: RequestState) -> None:
        """Hands whole computed pages to the prefix cache, so that others can share them from the next step on.

        Where the cache has such a page already the request goes on with the cache's and gives its own back.
        """
        table, prefix = self._holdings(state)
        first, end = table.shared, state.num_computed // self._page_size
        if end <= first:
            return
        own = table.owned[: end - first]
        longer = self.tree.insert(prefix, state.tokens[first * self._page_size : end * self._page_size], own)
        table.share(longer.pages)
        state.prefix = longer.node
        duplicates = own[own != longer.pages]
        if duplicates.size:
            self.pool.release(duplicates)
            self.num_returns += 1

    def leave(self, state: RequestState) -> None:
        """Takes all pages of a request back; what it computed stays in the prefix cache as long as there is room.

        Effects: clears the request's table, prefix and num_computed.
        """
        self.keep_computed(state)
        table, prefix = self._holdings(state)
        self.pool.release(table.owned)
        self.tree.unlock(prefix)
        self.tables.close(table)
        state.table = None
        state.prefix = None
        state.num_computed = 0
        self.num_returns += 1

    def assert_owned_once(self, states: list[RequestState]) -> None:
        """Checks that every page is free, the cache's or exactly one request's, and the counts that depend on it.

        Args:
            states: All requests that have pages.
        """
        nodes = list(self.tree.nodes())
        owned: list[Pages] = [node.pages for node in nodes]
        owned += [state.table.owned for state in states if state.table is not None]
        self.pool.assert_owned_once(owned)
        assert self.tree.num_pages == sum(node.pages.size for node in nodes), "the tree's count of pages is off"
        assert self.tree.evictable_pages == sum(node.pages.size for node in nodes if not node.locks), "the count of evictable pages is off"
        roots = sum(node.locks for node in nodes if node.parent is None)
        assert roots == sum(state.prefix is not None for state in states), "each request with pages holds one lock"

    def _holdings(self, state: RequestState) -> tuple[PageTable, Node]:
        assert state.table is not None and state.prefix is not None, "a running request has a page table and a locked prefix"
        return state.table, state.prefix

    def _take(self, count: int, *, after: int | None) -> Pages:
        shortage = count - self.pool.num_free
        if shortage > 0:
            self.pool.release(self.tree.evict(shortage))
        return self.pool.reserve(count, after=after)

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)
