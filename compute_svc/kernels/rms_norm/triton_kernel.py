"""One program normalises one row, or several short ones."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from compute_svc.kernels.backend import is_batch_invariant
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, rounded

# Numbers that a program of short rows takes, and numbers to a warp of a long one.
_NUMBERS, _NUMBERS_PER_WARP = 1024, 512


@triton.jit
def rms_norm_kernel(
    x,
    weight,
    out,
    rows,
    heads,
    columns,
    x_token_stride,
    x_head_stride,
    out_token_stride,
    out_head_stride,
    eps,
    PER_HEAD: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """x and out are [rows / heads, heads, columns], each with its strides of the first two; weight is [heads, columns] or, not PER_HEAD, [columns]."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    place = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (place < columns)
    token, head = (row // heads).to(tl.int64), row % heads
    numbers = tl.load(x + token * x_token_stride + head * x_head_stride + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(numbers * numbers, axis=1) / columns + eps)[:, None]
    if PER_HEAD:
        weights = tl.load(weight + head * columns + place, mask=inside, other=0.0).to(tl.float32)
    else:
        weights = tl.load(weight + place, mask=place < columns, other=0.0).to(tl.float32)
    tl.store(
        out + token * out_token_stride + head * out_head_stride + place, rounded(numbers * scale * weights, DTYPE, INTERPRETED), mask=inside
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """See the public function; x and out [rows, D] or [tokens, heads, D], columns next to each other; the weight is contiguous."""
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    columns, heads = x.shape[-1], x.shape[1] if x.dim() == 3 else 1
    rows = x.shape[0] * heads
    if rows == 0:
        return out
    block = triton.next_power_of_2(columns)
    rows_together = max(_NUMBERS // block, 1)
    if not is_batch_invariant():
        # Another shape of a block has its sums in another order.
        rows_together = min(rows_together, triton.next_power_of_2(rows))
    rms_norm_kernel[(triton.cdiv(rows, rows_together),)](
        x,
        weight,
        out,
        rows,
        heads,
        columns,
        x.stride(0),
        x.stride(-2),
        out.stride(0),
        out.stride(-2),
        eps,
        PER_HEAD=weight.dim() == 2,
        DTYPE=TL_DTYPES[x.dtype],
        ROWS=rows_together,
        BLOCK=block,
        INTERPRETED=INTERPRETED,
        num_warps=min(max(rows_together * block // _NUMBERS_PER_WARP, 1), 16),
    )
    return out
