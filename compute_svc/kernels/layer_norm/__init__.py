"""Layer normalisation."""

from __future__ import annotations

import torch

from compute_svc.kernels.layer_norm import aten


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Shifts and scales each row to mean zero and variance one, then by weight and bias; float32 inside.

    Args:
        x: [M, D], floating.
        weight: [D], x's dtype.
        bias: [D], x's dtype.
        eps: Added to the variance.

    Returns:
        x's shape and dtype, new memory.
    """
    return aten.layer_norm(x, weight, bias, eps)
