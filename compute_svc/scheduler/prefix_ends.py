"""Which running requests compute, or have computed, what comes behind a cached prefix."""

from __future__ import annotations

from collections.abc import Container

from compute_svc.kv.radix_node import Node, PartialPage, Tokens, count_agreeing
from compute_svc.kv.radix_tree import RadixTree
from compute_svc.scheduler.base import RequestState


class PrefixEnds:
    """Running requests by the node of the prefix cache where what they share ends.

    Requests that slide are not here: they have only their first chunk in order, which is not worth looking for.

    Args:
        tree: The prefix cache.
        page_size_tokens: Tokens of one page.
    """

    def __init__(self, tree: RadixTree, page_size_tokens: int) -> None:
        self._tree = tree
        self._page_size = page_size_tokens
        self._states: dict[Node, dict[int, RequestState]] = {}

    def enter(self, state: RequestState) -> None:
        """A request's prefix ends at its node from now on."""
        if not state.is_sliding:
            self._states.setdefault(_node_of(state), {})[state.request.number] = state

    def leave(self, state: RequestState) -> None:
        """Undoes `enter`, before the prefix or `is_sliding` changes."""
        if state.is_sliding:
            return
        node = _node_of(state)
        others = self._states[node]
        del others[state.request.number]
        if not others:
            del self._states[node]

    def find_leader(self, state: RequestState) -> tuple[RequestState, int] | None:
        """A running request that is about to compute at least a page of tokens that a waiting one needs too, and where those end."""
        known = state.tokens[: state.num_tokens - 1]
        node, length = self._tree.find(state.request.tenant, known)
        if node is None or length == known.size:
            return None
        for other in self._states.get(node, {}).values():
            if other.num_computed < other.prefill_end and not other.paused and other.tokens[length] == known[length]:
                end = length + count_agreeing(other.tokens[length : other.prefill_end], known[length:])
                if end - other.num_computed >= self._page_size:
                    return other, end
        return None

    def find_whole(self, node: Node, start: int, page: Tokens) -> RequestState | None:
        """A running request that has computed a page of these tokens behind its prefix, which ends at `start`."""
        if page.size == self._page_size:
            end = start + self._page_size
            for other in self._states.get(node, {}).values():
                if other.num_computed >= end and other.tokens[start] == page[0] and (other.tokens[start:end] == page).all():
                    return other
        return None

    def find_partial(self, node: Node, tokens: Tokens, unwritten: Container[RequestState]) -> PartialPage | None:
        """The page behind a prefix that agrees best with the tokens there: of the cache or of a running request.

        Args:
            node: Where the prefix ends.
            tokens: Behind it.
            unwritten: Requests whose page there is itself a copy that is still to be made.
        """
        if not tokens.size:
            return None
        best = node.find_partial(tokens, self._page_size)
        for other in self._states.get(node, {}).values():
            assert other.table is not None, "a running request has a page table"
            start = other.table.shared * self._page_size
            if other.num_computed <= start or other.tokens[start] != tokens[0]:
                continue
            agreed = count_agreeing(other.tokens[start : min(other.num_computed, start + self._page_size)], tokens)
            if agreed > (0 if best is None else best.num_tokens) and other not in unwritten:
                best = PartialPage(int(other.table.owned[0]), agreed)
        return best


def _node_of(state: RequestState) -> Node:
    assert state.prefix is not None, "a running request has a locked prefix"
    return state.prefix
