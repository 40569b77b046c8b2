"""What attention kernels must know of a model and its KV store, fixed for the life of both."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Shapes and constants of one attention layer over a paged store.

    Attributes:
        num_heads: Query heads, a multiple of num_kv_heads.
        num_kv_heads: Key and value heads.
        head_dim: D.
        page_size_tokens: Tokens per page.
        num_pages: Pages in the store.
        scale: What scores are multiplied by.
        window: How many tokens a query sees, itself included; None = all before it.
        slopes: Of each query head, what its scores lose per token of distance (ALiBi, arXiv 2108.12409); None = nothing.
        softcap: Scores s become softcap * tanh(s / softcap), before the distance counts; None = they stay.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size_tokens: int
    num_pages: int
    scale: float
    window: int | None
    slopes: tuple[float, ...] | None = None
    softcap: float | None = None

    @property
    def group_size(self) -> int:
        """Query heads per key head."""
        return self.num_heads // self.num_kv_heads

    def first_visible(self, position: int) -> int:
        """The first position that a query at `position` sees."""
        return 0 if self.window is None else max(0, position + 1 - self.window)
