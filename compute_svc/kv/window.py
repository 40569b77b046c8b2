"""What a request still needs of its KV when no layer sees all of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvWindow:
    """A window that every layer of a model keeps to, with what lies before its first tokens dropped in whole chunks.

    The first chunk stays, for attention sinks. A request's tokens are then numbered without those that were dropped; attention finds
    its way because it begins to read at multiples of a chunk (compute_svc/kernels/attention/kv_chunks.py).

    Attributes:
        tokens: The widest window, a query's own token included.
        chunk_tokens: Of one chunk, a multiple of the page size.
    """

    tokens: int
    chunk_tokens: int

    def droppable_tokens(self, position: int) -> int:
        """How many tokens behind the first chunk no query from this position on sees, in whole chunks."""
        return max(0, (position + 1 - self.tokens) // self.chunk_tokens - 1) * self.chunk_tokens

    def most_tokens(self, step_tokens: int) -> int:
        """What a request holds at most if it drops what it can after every step of so many tokens."""
        return self.tokens + 2 * self.chunk_tokens + step_tokens
