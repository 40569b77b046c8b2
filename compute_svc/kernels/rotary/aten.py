"""Multiplications and additions only, each rounded by itself.

One complex multiplication would do it in fewer passes, but its vector and scalar loops round differently, and where one ends and the
other begins depends on the batch.
"""

from __future__ import annotations

import torch


def rotary_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """See the public function."""
    half = x.shape[-1] // 2
    if x.dtype == torch.float32:
        crossed = x.roll(half, -1).mul_(sin)
        x.mul_(cos).add_(crossed)
        return
    wide = x.float()
    crossed = wide.roll(half, -1).mul_(sin)
    x.copy_(wide.mul_(cos).add_(crossed))
