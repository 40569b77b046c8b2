"""Floating rows by codes that become numbers in registers, just before they are multiplied.

A tile of the result lies on its side, as in kernels/int_linear: outputs by rows. Codes are integers that bfloat16 has exactly, or become values
of a table that is rounded to the rows' dtype; a block of inputs has one scale for each output, which its sums are multiplied by. Where few rows leave programs idle, several share a tile, each with a
part of the inputs; the last of them to end adds the parts in their order. Where `backend.is_batch_invariant` all of that is the same for every
number of rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from compute_svc.kernels.activation import Activation, activate
from compute_svc.kernels.backend import is_batch_invariant
from compute_svc.kernels.device_features import has_wgmma
from compute_svc.kernels.group_linear.packed import GroupedCodes
from compute_svc.kernels.int_linear.triton_kernel import Tiles, finish, most_rows, splits_for
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, dot, rounded, sum_of_splits, tile_of

# Two numbers of 16 bits with four codes each, to four times two bfloat16. 0x43 in the upper byte of a bfloat16 makes it 128 and what is in the
# lower seven bits: less 136 it is the code, which has 8 added.
_UNPACK_4 = tl.constexpr("""
{
.reg .b32 one, shift, moved;
mov.b32 one, 0x3F803F80;
mov.b32 shift, 0xC308C308;
lop3.b32 $0, $4, 0x000F000F, 0x43004300, 0xEA;
shr.u32 moved, $4, 4;
lop3.b32 $1, moved, 0x000F000F, 0x43004300, 0xEA;
shr.u32 moved, $4, 8;
lop3.b32 $2, moved, 0x000F000F, 0x43004300, 0xEA;
shr.u32 moved, $4, 12;
lop3.b32 $3, moved, 0x000F000F, 0x43004300, 0xEA;
fma.rn.bf16x2 $0, $0, one, shift;
fma.rn.bf16x2 $1, $1, one, shift;
fma.rn.bf16x2 $2, $2, one, shift;
fma.rn.bf16x2 $3, $3, one, shift;
}
""")
# Two numbers of 16 bits with two codes each, to two times two bfloat16. The sign alone in the lower byte makes it 128 or 256, which the sum of
# 128 and the other bits is a code more than.
_UNPACK_8 = tl.constexpr("""
{
.reg .b32 minus, sign, moved;
mov.b32 minus, 0xBF80BF80;
shr.u32 moved, $2, 8;
lop3.b32 sign, $2, 0x00800080, 0x43004300, 0xEA;
lop3.b32 $0, $2, 0x007F007F, 0x43004300, 0xEA;
fma.rn.bf16x2 $0, sign, minus, $0;
lop3.b32 sign, moved, 0x00800080, 0x43004300, 0xEA;
lop3.b32 $1, moved, 0x007F007F, 0x43004300, 0xEA;
fma.rn.bf16x2 $1, sign, minus, $1;
}
""")


@triton.jit
def code_of(packed, PART: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """One of the codes in each number of 16 bits."""
    # Less 8 is the same as the sign bit turned.
    signed = packed.to(tl.int32) ^ (0x8888 if BITS == 4 else 0)
    return ((signed << (32 - BITS * (PART + 1))) >> (32 - BITS)).to(tl.float32).to(DTYPE)


@triton.jit
def unpacked_4(packed, DTYPE: tl.constexpr, PLAIN: tl.constexpr):
    """The four codes in each number of 16 bits."""
    if PLAIN:
        codes = code_of(packed, 0, 4, DTYPE), code_of(packed, 1, 4, DTYPE), code_of(packed, 2, 4, DTYPE), code_of(packed, 3, 4, DTYPE)
    else:
        codes = tl.inline_asm_elementwise(
            _UNPACK_4, "=&r,=&r,=&r,=&r,r", [packed], dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
    return codes


@triton.jit
def unpacked_8(packed, DTYPE: tl.constexpr, PLAIN: tl.constexpr):
    """The two codes in each number of 16 bits."""
    if PLAIN:
        codes = code_of(packed, 0, 8, DTYPE), code_of(packed, 1, 8, DTYPE)
    else:
        codes = tl.inline_asm_elementwise(_UNPACK_8, "=&r,=&r,r", [packed], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2)
    return codes


@triton.jit
def value_of(packed, table, PART: tl.constexpr, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """The value of one of the codes in each number of 16 bits."""
    return rounded(tl.load(table + ((packed.to(tl.int32) >> (4 * PART)) & 15)), DTYPE, INTERPRETED)


@triton.jit
def unpacked(packed, table, BITS: tl.constexpr, LOOKUP: tl.constexpr, DTYPE: tl.constexpr, PLAIN: tl.constexpr, INTERPRETED: tl.constexpr):
    """What the codes in each number of 16 bits stand for, without their scales: four blocks, or two."""
    if BITS == 8:
        numbers = unpacked_8(packed, DTYPE, PLAIN)
    elif table is None:
        numbers = unpacked_4(packed, DTYPE, PLAIN)
    elif PLAIN:
        numbers = (
            value_of(packed, table, 0, DTYPE, INTERPRETED),
            value_of(packed, table, 1, DTYPE, INTERPRETED),
            value_of(packed, table, 2, DTYPE, INTERPRETED),
            value_of(packed, table, 3, DTYPE, INTERPRETED),
        )
    else:
        numbers = tl.inline_asm_elementwise(
            LOOKUP, "=&r,=&r,=&r,=&r,r", [packed], dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
    return numbers


@triton.jit
def first_input(block, RUN: tl.constexpr, BLOCK_K: tl.constexpr, BITS: tl.constexpr):
    """Of the first of the parts of a block of numbers of 16 bits; those of the others are RUN inputs apart."""
    return block // (RUN // BLOCK_K) * (RUN * (16 // BITS)) + block % (RUN // BLOCK_K) * BLOCK_K


@triton.jit
def scale_of(scales, first, n, N, K, GROUP: tl.constexpr):
    """[BLOCK_N]: of the group of an input; None of none. GROUP is 0 where all inputs share one."""
    if scales is None:
        scale = None
    elif GROUP == 0:
        scale = tl.load(scales + n, mask=n < N, other=0.0)
    else:
        scale = tl.load(scales + (first // GROUP * N + n), mask=(n < N) & (first < K), other=0.0)
    return scale


@triton.jit
def scales_of(scales, first, n, N, K, GROUP: tl.constexpr, RUN: tl.constexpr, BITS: tl.constexpr):
    """Of all parts of a block that begins with an input. Loaded a block ahead: not long before they are used, they would be waited for."""
    one, two = scale_of(scales, first, n, N, K, GROUP), scale_of(scales, first + RUN, n, N, K, GROUP)
    if BITS == 8:
        return one, two
    return one, two, scale_of(scales, first + 2 * RUN, n, N, K, GROUP), scale_of(scales, first + 3 * RUN, n, N, K, GROUP)


@triton.jit
def add_block(
    total, codes, places, scale, offset, first, m, M, K,
    EVEN: tl.constexpr, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """total + the products of a block of codes [BLOCK_N, BLOCK], inputs from `first` on, and x at `places` [BLOCK, BLOCK_M]."""
    if EVEN:
        x = tl.load(places, mask=(m < M)[None, :], other=0.0)
    else:
        x = tl.load(places, mask=(first + tl.arange(0, BLOCK) < K)[:, None] & (m < M)[None, :], other=0.0)
    part = dot(codes, x, tl.zeros((codes.shape[0], x.shape[1]), dtype=tl.float32), INTERPRETED)
    total += part * scale.to(tl.float32)[:, None]
    if offset is not None:
        total += sums_of(x, codes.shape[0], codes.shape[1], INTERPRETED) * offset[:, None]
    return total


@triton.jit
def sums_of(x, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr):
    """The sums of x's columns, over and over [BLOCK_N, BLOCK_M], or once.

    Matrix units have them where products are already; to add them up between threads takes longer than all else that is done with a block.
    """
    if x.dtype == tl.float32:
        sums = tl.sum(x, axis=0)[None, :]
    else:
        ones = rounded(tl.full((BLOCK_N, BLOCK), 1.0, tl.float32), x.dtype, INTERPRETED)
        sums = dot(ones, x, tl.zeros((BLOCK_N, x.shape[1]), dtype=tl.float32), INTERPRETED)
    return sums


@triton.jit(do_not_specialize=["M"])
def group_linear_kernel(
    x, weight, table, scales, offsets, bias, other, out, partials, counters,
    M, N, K, x_stride, weight_stride, split_blocks,
    BITS: tl.constexpr, LOOKUP: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr, EVEN: tl.constexpr,
    ACTIVATION: tl.constexpr, COMBINE: tl.constexpr, X_DTYPE: tl.constexpr, DTYPE: tl.constexpr, PLAIN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One tile of x weight^T, or what `split_blocks` blocks of numbers have of it; a grid of tiles and splits.

    x [M, K] with rows x_stride apart; weight [N, weight_stride], table, scales, offsets, bias, counters and RUN, its block: see packed.py; other
    and out [M, N]; partials [SPLITS, M, N] float32. PLAIN: codes become numbers without the instructions for bfloat16. BLOCK_K divides RUN.
    GROUP: inputs that share a scale, 0 if all do. EVEN: K is whole runs.
    """
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), 8)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    begin = tl.program_id(1) * split_blocks
    end = min(begin + split_blocks, weight_stride // BLOCK_K)
    weight_places = weight + n.to(tl.int64)[:, None] * weight_stride + k[None, :]
    x_places = x + m.to(tl.int64)[None, :] * x_stride + k[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    first = first_input(begin, RUN, BLOCK_K, BITS)
    of_parts = scales_of(scales, first, n, N, K, GROUP, RUN, BITS)
    added = scales_of(offsets, first, n, N, K, GROUP, RUN, BITS)
    for block in range(begin, end):
        packed = tl.load(weight_places + block * BLOCK_K, mask=(n < N)[:, None], other=0)
        parts = unpacked(packed, table, BITS, LOOKUP, X_DTYPE, PLAIN, INTERPRETED)
        following = first_input(block + 1, RUN, BLOCK_K, BITS)
        next_of_parts = scales_of(scales, following, n, N, K, GROUP, RUN, BITS)
        next_added = scales_of(offsets, following, n, N, K, GROUP, RUN, BITS)
        for part in tl.static_range(16 // BITS):
            begin_k = first + part * RUN
            total = add_block(
                total, parts[part], x_places + begin_k, of_parts[part], added[part], begin_k, m, M, K, EVEN, BLOCK_K, INTERPRETED
            )
        first = following
        of_parts = next_of_parts
        added = next_added
    inside = (n < N)[:, None] & (m < M)[None, :]
    total, is_last = sum_of_splits(total, partials, counters, m, n, M, N, inside, SPLITS)
    if is_last:
        finish(total, bias, other, out, n, m, N, inside, ACTIVATION, COMBINE, DTYPE, INTERPRETED)


@triton.jit
def numbers_kernel(
    weight, table, scales, offsets, out, N, K, weight_stride, group,
    BITS: tl.constexpr, RUN: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """What codes stand for, out [N, K]; a grid of blocks of outputs and of runs. See `group_linear_kernel`."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, RUN)
    run = tl.program_id(1)
    packed = tl.load(weight + n.to(tl.int64)[:, None] * weight_stride + (run * RUN + k)[None, :], mask=(n < N)[:, None], other=0)
    for part in tl.static_range(16 // BITS):
        first = (run * (16 // BITS) + part) * RUN
        inside = (n < N) & (first < K)
        numbers = code_of(packed, part, BITS, tl.float32) if table is None else value_of(packed, table, part, tl.float32, INTERPRETED)
        numbers *= tl.load(scales + first // group * N + n, mask=inside, other=0.0).to(tl.float32)[:, None]
        if offsets is not None:
            numbers += tl.load(offsets + first // group * N + n, mask=inside, other=0.0)[:, None]
        places = out + n.to(tl.int64)[:, None] * K + (first + k)[None, :]
        tl.store(places, rounded(numbers, DTYPE, INTERPRETED), mask=(n < N)[:, None] & (first + k < K)[None, :])


def numbers_of(weight: GroupedCodes, dtype: torch.dtype) -> torch.Tensor:
    """[N, K], computed in float32 and rounded once."""
    out = torch.empty((weight.out_features, weight.in_features), dtype=dtype, device=weight.data.device)
    length = weight.data.shape[1]
    numbers_kernel[(triton.cdiv(weight.out_features, 32), length // weight.block)](
        weight.data, weight.table, weight.scales, weight.offsets, out, weight.out_features, weight.in_features, length, weight.group,
        BITS=weight.bits, RUN=weight.block, DTYPE=TL_DTYPES[dtype], BLOCK_N=32, INTERPRETED=INTERPRETED, num_warps=4,
    )  # fmt: skip
    return out


# From more rows on it is quicker to write numbers once and have torch multiply by them than to make them anew for each tile.
_MOST_ROWS = 512
# Up to so many rows, the cut; k is of numbers of 16 bits, and no more than a block.
_TILES = (
    (16, Tiles(16, 64, 128, 4, 3, 264)),
    (32, Tiles(32, 64, 64, 4, 3, 264)),
    (1 << 62, Tiles(64, 128, 64, 8, 3, 132)),
)
# Of the most rows before Hopper, where registers hold the rows, too.
_TILES_IN_REGISTERS = Tiles(64, 128, 32, 8, 3, 132)
_LEAST_INPUTS = 32

# Float32 takes twice the shared memory.
_WIDE_TILES = Tiles(16, 64, 32, 4, 2, 264)
# Of all products whose bits may not depend on the number of rows: a compromise between few rows and many.
_INVARIANT_TILES = Tiles(32, 64, 64, 4, 3, 264)


def tiles_for(num_rows: int, block: int, dtype: torch.dtype, *, is_hopper: bool = True, has_offsets: bool = False) -> Tiles:
    """The cut of a product of so many rows by a weight of blocks, of which it may have offsets; see `has_wgmma`."""
    if dtype == torch.float32:
        tiles = _WIDE_TILES
    elif is_batch_invariant():
        tiles = _INVARIANT_TILES
    else:
        tiles = next(tiles for most, tiles in _TILES if num_rows <= most)
        tiles = _TILES_IN_REGISTERS if tiles == _TILES[-1][1] and not is_hopper else tiles
    # Sums of rows are one more factor in registers.
    most = max(tiles.k // 2, _LEAST_INPUTS) if has_offsets and not is_hopper else tiles.k
    return tiles._replace(k=min(most, block))


def group_linear(
    x: torch.Tensor,
    weight: GroupedCodes,
    activation: Activation,
    other: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    multiply: bool = False,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """See the public function; `other` is added, or multiplied by. Of very many rows the result has x's dtype, unless tiles are told."""
    num_rows, outputs = len(x), weight.out_features
    out = torch.empty((num_rows, outputs), dtype=dtype, device=x.device)
    if num_rows == 0:
        return out
    is_fixed = is_batch_invariant()
    if tiles is None and not is_fixed and num_rows > _MOST_ROWS:
        return _through_numbers(x, weight, activation, other, multiply)
    x = x if x.stride(1) == 1 else x.contiguous()
    other = None if other is None else other.contiguous()
    if tiles is None:
        tiles = tiles_for(num_rows, weight.block, x.dtype, is_hopper=has_wgmma(x.device), has_offsets=weight.offsets is not None)
    num_tiles = triton.cdiv(num_rows, tiles.m) * triton.cdiv(outputs, tiles.n)
    length = weight.data.shape[1]
    splits = splits_for(tiles, triton.cdiv(outputs, tiles.n) if is_fixed else num_tiles, length)
    most = most_rows(tiles, splits, outputs)
    if is_fixed and num_rows > most:
        for first in range(0, num_rows, most):
            at = slice(first, first + most)
            part = None if other is None else other[at]
            out[at] = group_linear(x[at], weight, activation, part, dtype, multiply=multiply, tiles=tiles)
        return out
    partials = torch.empty((splits, num_rows, outputs), dtype=torch.float32, device=x.device) if splits > 1 else None
    group_linear_kernel[(num_tiles, splits)](
        x, weight.data, weight.table, weight.scales, weight.offsets, weight.bias, other, out, partials, weight.counters,
        num_rows, outputs, weight.in_features, x.stride(0), length, triton.cdiv(length, splits * tiles.k),
        BITS=weight.bits, LOOKUP=weight.lookup, RUN=weight.block, GROUP=weight.scale_group, EVEN=weight.is_even, ACTIVATION=activation, COMBINE="none" if other is None else "mul" if multiply else "add",
        X_DTYPE=TL_DTYPES[x.dtype], DTYPE=TL_DTYPES[dtype], PLAIN=INTERPRETED or x.dtype != torch.bfloat16,
        BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_K=tiles.k, SPLITS=splits, INTERPRETED=INTERPRETED,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out


def _through_numbers(
    x: torch.Tensor, weight: GroupedCodes, activation: Activation, other: torch.Tensor | None, multiply: bool
) -> torch.Tensor:
    """As `group_linear`, weights and sums rounded to x's dtype in between."""
    bias = None if weight.bias is None else weight.bias.to(x.dtype)
    result = activate(F.linear(x, numbers_of(weight, x.dtype), bias), activation)
    if other is None:
        return result
    return result.mul_(other) if multiply else result.add_(other)
