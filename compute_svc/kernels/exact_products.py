"""How exactly CUDA multiplies: as exactly as the dtype says."""

from __future__ import annotations

import torch


def use_exact_products() -> None:
    """Float32 products are computed in float32 and not in TF32, and sums of bfloat16 products in float32 throughout.

    The first has three digits fewer, which the comparison with other implementations would show; the second is torch's default to permit.

    Effects: on the whole process.
    """
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
