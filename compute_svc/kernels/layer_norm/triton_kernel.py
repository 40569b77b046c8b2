"""One program normalises one row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, rounded


@triton.jit
def layer_norm_kernel(x, weight, bias, out, columns, x_stride, eps, DTYPE: tl.constexpr, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr):
    """x [rows, columns] with rows x_stride apart, out [rows, columns] contiguous; a grid of rows. No bias where it is None."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < columns
    numbers = tl.load(x + row * x_stride + place, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, numbers - tl.sum(numbers) / columns, 0.0)
    result = centred * tl.rsqrt(tl.sum(centred * centred) / columns + eps)
    result *= tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        result += tl.load(bias + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + place, rounded(result, DTYPE, INTERPRETED), mask=inside)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """See the public function; columns of x lie next to each other, weight and bias are contiguous."""
    rows, columns = x.shape
    out = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    block = triton.next_power_of_2(columns)
    layer_norm_kernel[(rows,)](
        x,
        weight,
        bias,
        out,
        columns,
        x.stride(0),
        eps,
        DTYPE=TL_DTYPES[x.dtype],
        BLOCK=block,
        INTERPRETED=INTERPRETED,
        num_warps=min(max(block // 512, 1), 16),
    )
    return out
