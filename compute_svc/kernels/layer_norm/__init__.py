"""Layer normalisation."""

from __future__ import annotations

import torch

from compute_svc.kernels.backend import backend_for
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
    if x.stride(-1) == 1 and backend_for("layer_norm", x.device.type, has_triton=True) == "triton":
        from compute_svc.kernels.layer_norm import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        return triton_kernel.layer_norm(x, weight, bias, eps)
    return aten.layer_norm(x, weight, bias, eps)
