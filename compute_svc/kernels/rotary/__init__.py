"""Rotary position embedding."""

from __future__ import annotations

import torch

from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.rotary import aten


def rotary_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotates pairs (i, i + D/2) of every head by its token's angles; float32 inside.

    Args:
        x: [T, heads, D], floating, any strides.
        cos: [T, 1, D] float32, the same in both halves.
        sin: [T, 1, D] float32, its first half negated.

    Effects: writes x.
    """
    if x.stride(2) == 1 and backend_for("rotary", x.device.type, has_triton=True) == "triton":
        from compute_svc.kernels.rotary import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        triton_kernel.rotary_(x, cos, sin)
        return
    aten.rotary_(x, cos, sin)
