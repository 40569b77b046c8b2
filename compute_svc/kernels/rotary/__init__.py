"""Rotary position embedding."""

from __future__ import annotations

import torch

from compute_svc.kernels.rotary import aten


def rotary_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotates pairs (i, i + D/2) of every head by its token's angles; float32 inside.

    Args:
        x: [T, heads, D], floating, any strides.
        cos: [T, 1, D] float32, the same in both halves.
        sin: [T, 1, D] float32, its first half negated.

    Effects: writes x.
    """
    aten.rotary_(x, cos, sin)
