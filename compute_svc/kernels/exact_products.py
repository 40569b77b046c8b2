"""How exactly libraries multiply and divide: as exactly as the dtype says, and a row the same whatever the number of rows."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def use_exact_products() -> None:
    """Float32 products on CUDA are computed in float32 and not in TF32, and sums of bfloat16 products in float32 throughout.

    The first has three digits fewer, which the comparison with other implementations would show; the second is torch's default to permit.

    Effects: on the whole process.
    """
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def divided(numbers: torch.Tensor, by: float) -> torch.Tensor:
    """numbers / by, correctly rounded on every device: on CUDA torch multiplies by the reciprocal of a Python number, which is rounded itself."""
    return numbers / numbers.new_full((), by)


def use_reproducible_mkl() -> None:
    """Has MKL, which multiplies where no kernel of ours does, sum a row in the same order whatever the number of rows.

    On Intel's CPUs it has code for few rows, and for others, that sums in other orders, unless its mode of strict reproducibility is on. On
    others it has less code and needs no telling. Half as fast for few rows; no kernel of ours is concerned.

    Effects: sets MKL_CBWR for this process and those that it starts, unless somebody has; MKL reads it at its first product.
    """
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    if "GenuineIntel" in told:
        os.environ.setdefault("MKL_CBWR", "AVX512,STRICT" if "avx512f" in told else "AVX2,STRICT")
