"""One program normalises one row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, rounded


@triton.jit
def rms_norm_kernel(x, weight, out, columns, x_stride, eps, DTYPE: tl.constexpr, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr):
    """x [rows, columns] with rows x_stride apart, out [rows, columns] contiguous; a grid of rows."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    inside = places < columns
    numbers = tl.load(x + row * x_stride + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(numbers * numbers) / columns + eps)
    weights = tl.load(weight + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + places, rounded(numbers * scale * weights, DTYPE, INTERPRETED), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the public function; x [rows, columns] with columns next to each other."""
    rows, columns = x.shape
    out = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(columns)
    warps = min(max(block // 512, 1), 16)
    rms_norm_kernel[(rows,)](
        x, weight, out, columns, x.stride(0), eps, DTYPE=TL_DTYPES[x.dtype], BLOCK=block, INTERPRETED=INTERPRETED, num_warps=warps
    )
    return out
