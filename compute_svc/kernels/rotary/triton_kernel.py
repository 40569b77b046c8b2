"""One program rotates some heads of one token; each thread has both numbers of a pair. The bits are those of aten.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, rounded

# Pairs that a program takes, 8 to a thread.
_PAIRS, _WARPS = 512, 2


@triton.jit
def rotary_kernel(
    x,
    cos,
    sin,
    heads,
    token_stride,
    head_stride,
    angle_stride,
    HALF: tl.constexpr,
    DTYPE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """x [tokens, heads, 2 * HALF]; a grid of tokens and of blocks of HEADS heads."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    pair = tl.broadcast_to(tl.arange(0, BLOCK)[None, :], (HEADS, BLOCK))
    inside = (head < heads) & (pair < HALF)
    firsts = x + token * token_stride + head * head_stride + pair
    first = tl.load(firsts, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(firsts + HALF, mask=inside, other=0.0).to(tl.float32)
    angle = token * angle_stride + HALF + pair
    cosine, sine = tl.load(cos + angle, mask=inside, other=0.0), tl.load(sin + angle, mask=inside, other=0.0)
    tl.store(firsts, rounded(first * cosine - second * sine, DTYPE, INTERPRETED), mask=inside)
    tl.store(firsts + HALF, rounded(second * cosine + first * sine, DTYPE, INTERPRETED), mask=inside)


def rotary_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """See the public function; numbers of a head lie next to each other."""
    assert cos.stride() == sin.stride(), "as they were made"
    num_tokens, num_heads, dims = x.shape
    if num_tokens == 0 or dims == 0:
        return
    block = triton.next_power_of_2(dims // 2)
    heads_together = min(max(_PAIRS // block, 1), triton.next_power_of_2(num_heads))
    rotary_kernel[(num_tokens, triton.cdiv(num_heads, heads_together))](
        x,
        cos,
        sin,
        num_heads,
        x.stride(0),
        x.stride(1),
        cos.stride(0),
        HALF=dims // 2,
        DTYPE=TL_DTYPES[x.dtype],
        HEADS=heads_together,
        BLOCK=block,
        INTERPRETED=INTERPRETED,
        num_warps=_WARPS,
        # Each operation is rounded by itself.
        enable_fp_fusion=False,
    )
