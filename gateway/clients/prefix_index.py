"""Which KV pages replicas hold, as they tell it: how much of a prompt each need not compute. Pure."""

from __future__ import annotations

import bisect
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from triserve.rpc.page_hash import page_hashes, tenant_hash

# What a page takes in a set: its hash as an object, and its share of the table.
BYTES_PER_PAGE = 100
# Of a prompt, those that are looked for: a millisecond's work per thousand.
_MAX_PROMPT_PAGES = 4096
# Pages of requests that were just given to a replica: it will hold them soon, and the next request of their prefix is to go there, too.
_MAX_EXPECTED = 8192
_EXPECTED_S = 10.0


class PageBudget:
    """How many pages are known of all replicas together.

    Args:
        max_bytes: they may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self.free = max_bytes // BYTES_PER_PAGE

    def take(self, count: int) -> bool:
        """Takes room for so many, if there is."""
        if count > self.free:
            return False
        self.free -= count
        return True


class PrefixIndex:
    """The pages of one replica.

    Args:
        budget: shared with the other replicas'.

    Attributes:
        dropped: Pages that the replica told of and that there was no room for: they count as not cached.
    """

    def __init__(self, budget: PageBudget) -> None:
        self.dropped = 0
        self._budget = budget
        self._pages: set[int] = set()
        # With when they are no longer expected, oldest first.
        self._expected: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def change(self, *, removed: Sequence[int], stored: Sequence[int]) -> None:
        """Pages have gone and come."""
        before = len(self._pages)
        self._pages.difference_update(removed)
        self._budget.free += before - len(self._pages)
        for page in stored:
            self._expected.pop(page, None)
            if page in self._pages:
                continue
            if not self._budget.take(1):
                self.dropped += 1
                continue
            self._pages.add(page)

    def clear(self) -> None:
        """Forgets all: the replica is gone, or begins anew."""
        self._budget.free += len(self._pages)
        self._pages.clear()
        self._expected.clear()

    def expect(self, pages: Iterable[int], now: float) -> None:
        """These will be there soon."""
        for page in pages:
            if page not in self._pages:
                self._expected[page] = now + _EXPECTED_S
                self._expected.move_to_end(page)
        while len(self._expected) > _MAX_EXPECTED:
            self._expected.popitem(last=False)

    def cached_pages(self, pages: Sequence[int], now: float) -> int:
        """How many of a prompt's leading pages are there, or will be: where one is, all before it are, since the last go first."""
        return bisect.bisect_left(range(len(pages)), True, key=lambda place: not self._has(pages[place], now))

    def _has(self, page: int, now: float) -> bool:
        return page in self._pages or self._expected.get(page, 0.0) > now


def prompt_pages(tenant: str, token_ids: Sequence[int], page_size_tokens: int) -> list[int]:
    """The hashes of a prompt's whole pages, as replicas name them.

    Args:
        tenant: whose prompt it is: nobody else's pages are its own.
        token_ids: each in [0, 2**32).
        page_size_tokens: of the replicas.
    """
    num_pages = min((len(token_ids) - 1) // page_size_tokens, _MAX_PROMPT_PAGES)
    ids = array("I", token_ids[: num_pages * page_size_tokens])
    return page_hashes(tenant_hash(tenant), ids.tobytes(), page_size_tokens)
