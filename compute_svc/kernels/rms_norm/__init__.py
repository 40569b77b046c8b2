"""Root-mean-square normalisation."""

from __future__ import annotations

import torch

from compute_svc.kernels.rms_norm import aten


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Scales each row to a root mean square of one, then by the weight; float32 inside.

    Args:
        x: [..., D], floating.
        weight: [D], or [heads, D] for x [..., heads, D]; x's dtype or float32.
        eps: Added to the mean square.

    Returns:
        x's shape and dtype, new memory.
    """
    return aten.rms_norm(x, weight, eps)
