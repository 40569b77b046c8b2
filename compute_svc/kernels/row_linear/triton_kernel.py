"""A program has some outputs and reads their rows of the weight from end to end; there is nothing that programs share.

Such a product is bound by memory: a multiprocessor must have some 40 KB on their way at any time. So blocks are copied ahead into shared memory,
which takes no register and no instruction to wait for, and a row of the weight is spread over all threads of a program, which use the same part
of x for all of its outputs. The mean square of a norm is summed beside the product and divides it in the end, so that no program waits for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.device_features import overlaps_launches
from compute_svc.kernels.quantise_rows import Norm, QuantisedRows
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, activated, rounded


@triton.jit
def _block(rows, first, k, inside, K, EVEN: tl.constexpr):
    """A block of a weight's rows [outputs, BLOCK_K], read once and not kept in the cache."""
    if EVEN:
        return tl.load(rows + first, mask=inside, other=0.0, eviction_policy="evict_first")
    return tl.load(rows + first, mask=inside & (first + k < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _fetch_ahead(rows, K, BLOCK_N: tl.constexpr, BYTES: tl.constexpr):
    """Asks for the first BYTES of each of some rows [BLOCK_N, 1] of a weight, into the second-level cache; nothing waits for them."""
    LINES: tl.constexpr = BYTES // 128
    ITEM: tl.constexpr = rows.dtype.element_ty.primitive_bitwidth // 8
    places = tl.minimum(tl.arange(0, LINES) * (128 // ITEM), K - 1)
    lines = tl.broadcast_to(rows + places[None, :], (BLOCK_N, LINES)).to(tl.int64)
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _add_products(total, weights, numbers, INTEGERS: tl.constexpr, INTERPRETED: tl.constexpr):
    """total + weights * numbers [outputs, BLOCK_K]; of INTEGERS four codes of 8 bits are in one of 32, and their products are added up."""
    if not INTEGERS:
        result = total + weights.to(tl.float32) * numbers[None, :]
    elif INTERPRETED:
        result = total
        for place in tl.static_range(0, 32, 8):
            result += ((weights << (24 - place)) >> 24) * ((numbers[None, :] << (24 - place)) >> 24)
    else:
        both = tl.broadcast_to(numbers[None, :], weights.shape)
        result = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [weights, both, total], dtype=tl.int32, is_pure=True, pack=1
        )
    return result


@triton.jit(do_not_specialize=["N"])
def row_kernel(
    x, x_scale, weight, scales, norm_weight, bias, other, out, N, K, eps,
    GATED: tl.constexpr, INTEGERS: tl.constexpr, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, AHEAD_BYTES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """A grid of outputs, BLOCK_N a program.

    x [K] and weight [N, K], of INTEGERS both as words of 32 bits; of codes x_scale [1] and scales [N] float32; norm_weight [K]; bias, other
    and out [N]. GATED: weight and bias have the gate's N and behind them those of up. EVEN: K is whole blocks. AHEAD_BYTES above 0: the
    kernel is launched while the one before it ends, and asks for so many bytes of every row of the weight before it waits for that one's end.
    """
    ACC: tl.constexpr = tl.int32 if INTEGERS else tl.float32
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = (n < N)[:, None]
    rows = weight + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K
    up_rows = rows + N.to(tl.int64) * K
    if AHEAD_BYTES > 0:
        _fetch_ahead(rows, K, BLOCK_N, AHEAD_BYTES)
        if GATED:
            _fetch_ahead(up_rows, K, BLOCK_N, AHEAD_BYTES)
        tl.extra.cuda.gdc_launch_dependents()
        # Weights apart, whatever is read may be of the kernel before, and whatever is written may be read by it.
        tl.extra.cuda.gdc_wait()
    rows, up_rows = rows + k[None, :], up_rows + k[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_K), dtype=ACC)
    up_total = total
    squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
    for first in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        block = _block(rows, first, k, inside, K, EVEN)
        numbers = tl.load(x + first + k) if EVEN else tl.load(x + first + k, mask=first + k < K, other=0.0)
        if not INTEGERS:
            numbers = numbers.to(tl.float32)
        if norm_weight is not None:
            squares += numbers * numbers
            factors = tl.load(norm_weight + first + k) if EVEN else tl.load(norm_weight + first + k, mask=first + k < K, other=0.0)
            numbers *= factors.to(tl.float32)
        total = _add_products(total, block, numbers, INTEGERS, INTERPRETED)
        if GATED:
            up_total = _add_products(up_total, _block(up_rows, first, k, inside, K, EVEN), numbers, INTEGERS, INTERPRETED)
    there = n < N
    result = tl.sum(total, 1).to(tl.float32)
    if scales is not None:
        result = result * tl.load(x_scale) * tl.load(scales + n, mask=there, other=0.0)
    factor = 1.0
    if norm_weight is not None:
        factor = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        result *= factor
    if bias is not None:
        result += tl.load(bias + n, mask=there, other=0.0).to(tl.float32)
    result = activated(result, ACTIVATION)
    if GATED:
        up = tl.sum(up_total, 1) * factor
        if bias is not None:
            up += tl.load(bias + N + n, mask=there, other=0.0).to(tl.float32)
        result *= up
    if other is not None:
        result += tl.load(other + n, mask=there, other=0.0).to(tl.float32)
    tl.store(out + n, rounded(result, DTYPE, INTERPRETED), mask=there)


class Tiles(NamedTuple):
    """How a product is cut.

    Attributes:
        n: Outputs of a program.
        bytes: Of a row of the weight that are read at a time: 16 for each thread.
        warps: Of a program.
        stages: Blocks that are on their way.
        ahead: Bytes of each row of the weight that are asked for while the kernel before ends (Hopper's programmatic dependent launch);
            0 = a launch waits for that.
    """

    n: int
    bytes: int
    warps: int
    stages: int
    ahead: int = 0


# A gate and its up count as two outputs. Eight of them read x, which comes from the second-level cache, an eighth as often as the weight, and
# 4096 of them, 18 KB a block, are programs enough to be all at work at once.
TILES = Tiles(8, 2048, 4, 3)
GATED_TILES = Tiles(4, 2048, 4, 3)
# A block has as many codes as registers hold sums.
FLOAT8_TILES = Tiles(4, 2048, 4, 4)


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: Activation,
    add: torch.Tensor | None,
    norm: Norm | None,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """See `row_linear`."""
    out = torch.empty((1, len(weight)), dtype=x.dtype, device=x.device)
    _launch(x, None, weight, None, norm, bias, add, out, activation, tiles or TILES)
    return out


def multiply_gated(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation, norm: Norm | None, tiles: Tiles | None = None
) -> torch.Tensor:
    """See `row_gated_linear`."""
    out = torch.empty((1, len(weight) // 2), dtype=x.dtype, device=x.device)
    _launch(x, None, weight, None, norm, bias, None, out, activation, tiles or GATED_TILES)
    return out


def multiply_codes(
    row: QuantisedRows,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    activation: Activation,
    add: torch.Tensor | None,
    dtype: torch.dtype,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """See `row_code_linear`."""
    out = torch.empty((1, len(weight)), dtype=dtype, device=weight.device)
    codes = row.codes
    if weight.dtype == torch.int8:
        codes, weight = codes.view(torch.int32), weight.view(torch.int32)
    chosen = tiles or (TILES if weight.dtype == torch.int32 else FLOAT8_TILES)
    _launch(codes, row.scales, weight, scales, None, bias, add, out, activation, chosen)
    return out


def _launch(
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    norm: Norm | None,
    bias: torch.Tensor | None,
    add: torch.Tensor | None,
    out: torch.Tensor,
    activation: Activation,
    tiles: Tiles,
) -> None:
    outputs, inputs = out.shape[1], weight.shape[1]
    ahead = tiles.ahead if overlaps_launches(weight.device) else 0
    block = min(tiles.bytes // weight.element_size(), triton.next_power_of_2(inputs))
    row_kernel[(triton.cdiv(outputs, tiles.n),)](
        x, x_scale, weight, scales, None if norm is None else norm.weight, bias, add, out, outputs, inputs, 0.0 if norm is None else norm.eps,
        GATED=len(weight) != outputs, INTEGERS=weight.dtype == torch.int32, ACTIVATION=activation, DTYPE=TL_DTYPES[out.dtype], EVEN=inputs % block == 0,
        BLOCK_N=tiles.n, BLOCK_K=block, STAGES=tiles.stages, AHEAD_BYTES=ahead, INTERPRETED=INTERPRETED,
        num_warps=tiles.warps, num_stages=tiles.stages, **({"launch_pdl": True} if ahead else {}),
    )  # fmt: skip
