"""Root-mean-square normalisation."""

from __future__ import annotations

import torch

from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.rms_norm import aten


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """Scales each row to a root mean square of one, then by the weight; float32 inside.

    Args:
        x: [..., D], floating.
        weight: [D], or [heads, D] for x [..., heads, D]; x's dtype or float32.
        eps: Added to the mean square.
        out: Where the result is written, of x's shape and dtype; may be x itself. None = new memory.

    Returns:
        x's shape and dtype: out.

    Effects: writes out.
    """
    if x.dim() in (2, 3) and x.stride(-1) == 1 and backend_for("rms_norm", x.device.type, has_triton=True) == "triton":
        from compute_svc.kernels.rms_norm import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        return triton_kernel.rms_norm(x, weight, eps, out)
    result = aten.rms_norm(x, weight, eps)
    return result if out is None else out.copy_(result)
