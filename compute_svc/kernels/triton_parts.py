"""What Triton kernels share. Imports Triton: only a triton_kernel.py may import this.

Kernels load numbers of any dtype and compute in float32. Triton's interpreter, which runs them on a CPU in tests, holds bfloat16 as its bits:
arithmetic and `tl.dot` on those are silently wrong there, and a conversion to bfloat16 cuts off where a device rounds. `dot` and `rounded` are
right on both.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels of this process run in the interpreter; a constexpr argument of kernels that ask."""

# Adding and subtracting it rounds a float32 below 2^22 to an integer, half to even; libdevice's rint is not there in the interpreter.
_ROUNDING = tl.constexpr(12582912.0)

TL_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int8: tl.int8,
    torch.float8_e4m3fn: tl.float8e4nv,
}
"""Triton's name of a dtype."""


@triton.jit
def round_half_even(x):
    """float32 below 2^22 in magnitude, rounded to integers, as torch.round does it."""
    return (x + _ROUNDING) - _ROUNDING


@triton.jit
def rounded(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 to a dtype, to nearest, half to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def dot(a, b, acc, INTERPRETED: tl.constexpr):
    """acc + a b in float32, of two blocks of one floating dtype; float32 ones are multiplied without TF32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def magnitude_bits(x):
    """float32 to int32 in the order of magnitudes: zero is 0, infinity is above all numbers, and what is not a number above that."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def sigmoid(x):
    """Of float32; no exponential overflows."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, small, 1.0) / (1.0 + small)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """An activation of kernels/activation.py, by its name, of float32."""
    if ACTIVATION == "silu":
        return x * sigmoid(x)
    elif ACTIVATION == "gelu":
        return x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # x (1 + tanh z) / 2, and (1 + tanh z) / 2 is the sigmoid of 2z.
        return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "sigmoid":
        return sigmoid(x)
    elif ACTIVATION == "relu":
        return tl.where(x < 0.0, 0.0, x)
    else:
        return x


@triton.jit
def tile_of(program, num_m, num_n, ABREAST: tl.constexpr):
    """Which tile of a product a program computes, (m, n): `ABREAST` tiles of rows go together through all weights, which stay in the cache."""
    in_group = ABREAST * num_n
    first = (program // in_group) * ABREAST
    abreast = min(num_m - first, ABREAST)
    return first + (program % in_group) % abreast, (program % in_group) // abreast


@triton.jit
def is_last_of(counter, count):
    """Whether the other of so many programs of a tile have written what they have of it; sets the counter back to zero for the next launch if so.

    What they wrote must be read past the first-level cache.
    """
    # All threads have stored before one of them counts this program as done.
    tl.debug_barrier()
    is_last = tl.atomic_add(counter, 1, sem="acq_rel") == count - 1
    tl.store(counter, 0, mask=is_last)
    return is_last


@triton.jit
def sum_of_splits(total, partials, counters, m, n, M, N, inside, SPLITS: tl.constexpr):
    """Adds up what the programs that share a tile of a product have of it, in their order; returns the sum and whether this program ended last.

    In one that did not the sum means nothing. Programs are numbered by tile, then by split.

    Args:
        total: [n, m], this program's part.
        partials: [SPLITS, M, N], of total's dtype.
        counters: int32 zeros, one for each tile; zeros again for the next launch.
        m: Rows of the tile.
        n: Outputs of the tile.
        M: Rows.
        N: Outputs.
        inside: [n, m], which are there.
        SPLITS: How many programs share a tile.
    """
    is_last = True
    if SPLITS > 1:
        places = partials + m.to(tl.int64)[None, :] * N + n[:, None]
        tl.store(places + tl.program_id(1).to(tl.int64) * M * N, total, mask=inside)
        is_last = is_last_of(counters + tl.program_id(0), SPLITS)
        if is_last:
            total = tl.zeros_like(total)
            for split in tl.static_range(SPLITS):
                total += tl.load(places + tl.full((), split, tl.int64) * M * N, mask=inside, other=0, cache_modifier=".cg")
    return total, is_last
