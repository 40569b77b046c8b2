"""One program places some heads of one token: normalised, rotated, written back or encoded and stored. The bits are those of one operation after
the other, with the order of operations of kernels/rotary and kernels/paged_kv/kv_codes.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.place_heads import QueryKeyNorm
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, magnitude_bits, round_half_even, rounded

# Numbers that a program takes, 8 to a thread.
_NUMBERS, _WARPS = 1024, 4


@triton.jit
def float8_bits(x):
    """float32 within plus or minus 448 to the bits of float8_e4m3fn, to nearest, half to even; not every device converts to those."""
    magnitude = magnitude_bits(x)
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6, multiples of 2^-9.
    code = tl.where(magnitude < 0x3C800000, round_half_even(tl.abs(x) * 512.0).to(tl.int32), normal)
    return (code | ((x.to(tl.int32, bitcast=True) >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def encoded(x, LARGEST: tl.constexpr):
    """Codes and scales of x [heads, groups, group] float32, zeros past a group's end, as kernels/paged_kv/kv_codes.py has them: LARGEST 127 is int8, 448 float8.

    Returns:
        int8 or the bits of float8_e4m3fn as uint8; [heads, groups] float16.
    """
    largest = tl.max(magnitude_bits(x), axis=2)
    is_finite = largest < 0x7F800000
    exact = tl.div_rn(tl.where(is_finite, largest, 0).to(tl.float32, bitcast=True), LARGEST)
    exact = tl.minimum(exact, 65504.0)
    nearest = exact.to(tl.float16)
    # Positive float16 numbers are ordered as their bits are: the next one is one more.
    bits = nearest.to(tl.int16, bitcast=True) + tl.where(nearest.to(tl.float32) < exact, 1, 0).to(tl.int16)
    scales = tl.where(is_finite, bits, 0x7E00).to(tl.int16).to(tl.float16, bitcast=True)
    usable = (is_finite & (bits > 0))[:, :, None]
    codes = tl.div_rn(x, tl.where(usable, scales.to(tl.float32)[:, :, None], 1.0))
    codes = tl.where(usable, tl.minimum(tl.maximum(codes, -LARGEST), LARGEST), 0.0)
    if LARGEST == 127.0:
        return round_half_even(codes).to(tl.int8), scales
    else:
        return float8_bits(codes), scales


@triton.jit
def normed(x, factors, weights, mask, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """x [heads, runs, run] float32 times a factor of each head and weights, a pointer to each, rounded to a dtype; x outside of the mask."""
    scaled = x * factors * tl.load(weights, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, rounded(scaled, DTYPE, INTERPRETED).to(tl.float32), x)


@triton.jit
def partner_column(column, run, place, HALF: tl.constexpr, RUN: tl.constexpr):
    """Of the number that a number is rotated with; where halves are whole runs, so that the compiler sees which lie next to each other."""
    if HALF % RUN == 0:
        return tl.where(run < HALF // RUN, run + HALF // RUN, run - HALF // RUN) * RUN + place
    else:
        return tl.where(column < HALF, column + HALF, column - HALF)


@triton.jit
def store(
    numbers, data, scales, row, column, run, mask, WIDTH: tl.constexpr, LARGEST: tl.constexpr, RUN: tl.constexpr, INTERPRETED: tl.constexpr
):
    """Stores numbers [heads, runs, run] float32 in rows of the store, as they are or, with LARGEST above 0, as codes and scales."""
    if LARGEST > 0:
        codes, code_scales = encoded(numbers, LARGEST)
        tl.store(data + row * WIDTH + column, codes, mask=mask)
        # The first number of a run is there if any is.
        is_group = tl.max(mask.to(tl.int32), axis=2)[:, :, None] > 0
        tl.store(scales + row * ((WIDTH + RUN - 1) // RUN) + run, code_scales[:, :, None], mask=is_group)
    else:
        tl.store(data + row * WIDTH + column, rounded(numbers, data.dtype.element_ty, INTERPRETED), mask=mask)


@triton.jit
def place_heads_kernel(
    heads,
    slots,
    cos,
    sin,
    norm_weight,
    data,
    scales,
    token_stride,
    head_stride,
    angle_stride,
    num_slots,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROTARY: tl.constexpr,
    NORM_WIDTH: tl.constexpr,
    LARGEST: tl.constexpr,
    DTYPE: tl.constexpr,
    HEADS: tl.constexpr,
    RUN: tl.constexpr,
    RUNS: tl.constexpr,
    RUN_BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A grid of tokens and of blocks of HEADS heads. A head is RUNS runs of RUN numbers, one group of codes each if there are scales."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    first = tl.program_id(1) * HEADS
    head = first + tl.arange(0, HEADS)[:, None, None]
    run, place = tl.arange(0, RUNS)[None, :, None], tl.arange(0, RUN_BLOCK)[None, None, :]
    column = run * RUN + place
    inside = (place < RUN) & (column < WIDTH) & (head < NUM_HEADS + 2 * NUM_KV_HEADS)
    is_asking = inside & (head < NUM_HEADS)
    is_compared = inside & (head < NUM_HEADS + NUM_KV_HEADS)
    rows = heads + token * token_stride + head * head_stride
    numbers = tl.load(rows + column, mask=inside, other=0.0).to(tl.float32)
    if NORM_WIDTH > 0:
        weights, mask = norm_weight + head * NORM_WIDTH, is_compared & (column < NORM_WIDTH)
        squares = tl.where(mask, numbers * numbers, 0.0)
        factors = tl.rsqrt(tl.sum(tl.sum(squares, axis=2), axis=1) / NORM_WIDTH + eps)[:, None, None]
        numbers = normed(numbers, factors, weights + column, mask, DTYPE, INTERPRETED)
    if ROTARY > 0:
        turns = is_compared & (column < ROTARY)
        partner = partner_column(column, run, place, ROTARY // 2, RUN)
        crossed = tl.load(rows + partner, mask=turns, other=0.0).to(tl.float32)
        if NORM_WIDTH > 0:
            crossed = normed(crossed, factors, weights + partner, turns & (partner < NORM_WIDTH), DTYPE, INTERPRETED)
        # Of every head, though they are alike: so they come to the threads that need them.
        angle = token * angle_stride + tl.broadcast_to(column, (HEADS, RUNS, RUN_BLOCK))
        cosines = tl.load(cos + angle, mask=turns, other=0.0)
        turned = numbers * cosines + crossed * tl.load(sin + angle, mask=turns, other=0.0)
        numbers = tl.where(turns, rounded(turned, DTYPE, INTERPRETED).to(tl.float32), numbers)
    if (ROTARY > 0 or NORM_WIDTH > 0) and first < NUM_HEADS:
        # Behind every thread's reading of partners.
        tl.debug_barrier()
        tl.store(rows + column, rounded(numbers, DTYPE, INTERPRETED), mask=is_asking)
    if first + HEADS > NUM_HEADS:
        row = (head - NUM_HEADS).to(tl.int64) * num_slots + slot
        store(numbers, data, scales, row, column, run, inside & (head >= NUM_HEADS), WIDTH, LARGEST, RUN, INTERPRETED)


def place_heads(
    heads: torch.Tensor,
    kv: KvLayer,
    slots: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    num_heads: int,
    rotary_dims: int,
    norm: QueryKeyNorm | None,
) -> None:
    """See the public function; numbers of a head lie next to each other."""
    assert cos.stride() == sin.stride() and kv.data.is_contiguous(), "as they were made"
    weight, eps = norm if norm is not None else (None, 0.0)
    num_kv_heads, num_pages, page_size, width = kv.data.shape
    if len(slots) == 0:
        return
    run = kv.group if kv.scales is not None else _run_of(width, rotary_dims)
    runs, run_block = triton.next_power_of_2(triton.cdiv(width, run)), triton.next_power_of_2(run)
    heads_together = min(max(_NUMBERS // (runs * run_block), 1), triton.next_power_of_2(heads.shape[1]))
    place_heads_kernel[(len(slots), triton.cdiv(heads.shape[1], heads_together))](
        heads,
        slots,
        cos,
        sin,
        weight,
        kv.data.view(torch.uint8) if kv.data.dtype == torch.float8_e4m3fn else kv.data,
        kv.scales,
        heads.stride(0),
        heads.stride(1),
        cos.stride(0),
        num_pages * page_size,
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads // 2,
        WIDTH=width,
        ROTARY=rotary_dims,
        NORM_WIDTH=0 if weight is None else weight.shape[1],
        LARGEST=0.0 if kv.scales is None else 127.0 if kv.data.dtype == torch.int8 else 448.0,
        DTYPE=TL_DTYPES[heads.dtype],
        HEADS=heads_together,
        RUN=run,
        RUNS=runs,
        RUN_BLOCK=run_block,
        INTERPRETED=INTERPRETED,
        num_warps=_WARPS,
        # A sum of two products has the bits of three operations, each rounded by itself.
        enable_fp_fusion=False,
    )


def _run_of(width: int, rotary_dims: int) -> int:
    """The longest power of two that both halves of what is rotated, and a head, are whole runs of; then partners lie in runs, too."""
    common = math.gcd(width, rotary_dims // 2)
    return common & -common
