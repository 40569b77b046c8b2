"""Layer normalisation."""

from __future__ import annotations

import torch

from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.layer_norm import cpu, reference


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
    if backend_for("layer_norm", x.device.type) == "cpu":
        return cpu.layer_norm(x, weight, bias, eps)
    return reference.layer_norm(x, weight, bias, eps)
