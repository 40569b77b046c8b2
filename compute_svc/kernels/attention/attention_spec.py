"""What attention kernels must know of a model and its KV store, fixed for the life of both."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MAX_SINKS = 32
"""So many first tokens can stay visible behind a window."""


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
        rounded_slopes: As Falcon was trained: scores gain slope times position of the key, all three rounded to bfloat16, times scale. But for
            the rounding that is what they lose by distance, and something that is the same for all keys.
        softcap: Scores s become softcap * tanh(s / softcap), before the distance counts; None = they stay.
        sinks: How many sink tokens, the first of all, every query sees besides its window (attention sinks, arXiv 2309.17453); 0 = none. Their scores are
            those of other queries, rotated as if the sink tokens stood right before the window.
        stored: Dtype of the store's numbers or codes.

    Raises:
        ValueError: Sinks are more than MAX_SINKS, or come without a window or with slopes.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size_tokens: int
    num_pages: int
    scale: float
    window: int | None
    slopes: tuple[float, ...] | None = None
    rounded_slopes: bool = False
    softcap: float | None = None
    sinks: int = 0
    stored: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if not 0 <= self.sinks <= MAX_SINKS:
            raise ValueError(f"sinks is {self.sinks}, it must be from 0 to {MAX_SINKS}")
        if self.sinks and self.window is None:
            raise ValueError("sinks need a window: without one every query sees all tokens")
        if self.sinks and self.slopes is not None:
            raise ValueError("sinks do not go with slopes: the distance to a sink is that of a rotated query")

    @property
    def group_size(self) -> int:
        """Query heads per key head."""
        return self.num_heads // self.num_kv_heads

    def first_visible(self, position: int) -> int:
        """The first position that a query at `position` sees, but for sinks."""
        return 0 if self.window is None else max(0, position + 1 - self.window)
