"""Products whose rows have the same bits whatever the number of rows; in place of cuBLAS, which sums in another order for another number.

A tile of the result lies on its side, outputs by rows, as in kernels/int_linear: whatever its size, a weight is the left operand of the same
matrix instructions. Inputs are cut into segments by the weight's shape alone. Each segment is summed by itself, a block after the other, and
then the segments in their order: by programs of their own where few rows leave the device idle, by one program otherwise.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from compute_svc.kernels.int_linear.triton_kernel import finish
from compute_svc.kernels.linear.weight import Activation, LinearWeight
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, dot, sum_of_splits, tile_of


@triton.jit
def segment_of(
    x, weight, tile_m, tile_n, M, N, K, x_stride, begin, end,
    EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """[BLOCK_N, BLOCK_M] float32: what inputs from begin to end have of a tile. EVEN: these are whole blocks."""
    k = tl.arange(0, BLOCK_K)
    n, m = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    # Within a tile 32 bits are enough.
    weight_places = weight + tile_n.to(tl.int64) * BLOCK_N * K + begin + (n[:, None] * K + k[None, :])
    x_places = x + tile_m.to(tl.int64) * BLOCK_M * x_stride + begin + (m[None, :] * x_stride + k[:, None])
    n += tile_n * BLOCK_N
    m += tile_m * BLOCK_M
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for first in range(begin, end, BLOCK_K):
        if EVEN:
            weights = tl.load(weight_places, mask=(n < N)[:, None], other=0.0)
            rows = tl.load(x_places, mask=(m < M)[None, :], other=0.0)
        else:
            weights = tl.load(weight_places, mask=(n < N)[:, None] & (first + k < end)[None, :], other=0.0)
            rows = tl.load(x_places, mask=(m < M)[None, :] & (first + k < end)[:, None], other=0.0)
        total = dot(weights, rows, total, INTERPRETED)
        weight_places += BLOCK_K
        x_places += BLOCK_K
    return total


@triton.jit(do_not_specialize=["M"])
def linear_kernel(
    x, weight, bias, other, out, partials, counters,
    M, N, K, x_stride, segment_inputs,
    ACTIVATION: tl.constexpr, COMBINE: tl.constexpr, DTYPE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, SEGMENTS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One tile of x weight^T, or what SEGMENTS segments of `segment_inputs` inputs have of it; a grid of tiles and splits.

    x [M, K] with rows x_stride apart; weight [N, K]; bias [N]; other and out [M, N]; partials [SPLITS, M, N] float32; counters [tiles] zeros.
    SPLITS or SEGMENTS is 1. EVEN: K is whole segments of whole blocks.
    """
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), 8)
    if SEGMENTS == 1:
        begin = tl.program_id(1) * segment_inputs
        end = min(begin + segment_inputs, K)
        total = segment_of(x, weight, tile_m, tile_n, M, N, K, x_stride, begin, end, EVEN, BLOCK_M, BLOCK_N, BLOCK_K, INTERPRETED)
    else:
        total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for segment in range(SEGMENTS):
            begin = segment * segment_inputs
            end = min(begin + segment_inputs, K)
            total += segment_of(x, weight, tile_m, tile_n, M, N, K, x_stride, begin, end, EVEN, BLOCK_M, BLOCK_N, BLOCK_K, INTERPRETED)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (n < N)[:, None] & (m < M)[None, :]
    total, is_last = sum_of_splits(total, partials, counters, m, n, M, N, inside, SPLITS)
    if is_last:
        finish(total, bias, other, out, n, m, N, inside, ACTIVATION, COMBINE, DTYPE, INTERPRETED)


class Tiles(NamedTuple):
    """How a product is cut into tiles.

    Attributes:
        m: Rows of a tile.
        n: Outputs of a tile.
        warps: Of a program.
        stages: Blocks that are on their way.
    """

    m: int
    n: int
    warps: int
    stages: int


# Inputs of a block, the same for all tiles.
BLOCK_INPUTS = 64

# Up to so many rows. Outputs are never fewer than Hopper's matrix instructions want on their left.
_TILES = (
    (16, Tiles(16, 64, 4, 6)),
    (32, Tiles(32, 64, 4, 6)),
    (64, Tiles(64, 64, 4, 5)),
    (1 << 62, Tiles(128, 128, 8, 3)),
)
# Products in float32 do without matrix units: registers hold the blocks.
_FLOAT32_TILES = Tiles(16, 64, 4, 2)

# As many programs as keep the device busy with the fewest rows.
_PROGRAMS = 264
_MOST_SEGMENTS = 8
_LEAST_BLOCKS = 8
# Fewer tiles than multiprocessors leave some idle.
_FEW_TILES = 132


def tiles_for(num_rows: int, dtype: torch.dtype) -> Tiles:
    """The tiles of a product of so many rows."""
    return _FLOAT32_TILES if dtype == torch.float32 else next(tiles for most, tiles in _TILES if num_rows <= most)


def segments_for(outputs: int, inputs: int) -> int:
    """How many segments a weight's inputs are summed in; by its shape alone."""
    most = min(_PROGRAMS // -(-outputs // _TILES[0][1].n), inputs // (BLOCK_INPUTS * _LEAST_BLOCKS), _MOST_SEGMENTS)
    return 1 << (max(most, 1).bit_length() - 1)


@cache
def _counters(device: torch.device) -> torch.Tensor:
    """Of one stream at a time; zeros between launches."""
    return torch.zeros(_FEW_TILES, dtype=torch.int32, device=device)


def multiply(
    x: torch.Tensor, data: torch.Tensor, bias: torch.Tensor | None, activation: Activation = "none", add: torch.Tensor | None = None
) -> torch.Tensor:
    """activation(x data^T + bias) (+ add), rounded once; a row of the result has the same bits whatever the other rows are, and their number.

    Args:
        x: [M, K].
        data: [N, K], x's dtype, contiguous.
        bias: [N]; None = zero.
        activation: Of the sums.
        add: [M, N], x's dtype.

    Returns:
        [M, N], x's dtype, new memory.
    """
    (num_rows, inputs), outputs = x.shape, len(data)
    out = torch.empty((num_rows, outputs), dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    x = x if x.stride(1) == 1 else x.contiguous()
    add = None if add is None else add.contiguous()
    tiles, segments = tiles_for(num_rows, x.dtype), segments_for(outputs, inputs)
    num_tiles = triton.cdiv(num_rows, tiles.m) * triton.cdiv(outputs, tiles.n)
    splits = segments if num_tiles < _FEW_TILES else 1
    partials = torch.empty((splits, num_rows, outputs), dtype=torch.float32, device=x.device) if splits > 1 else None
    segment_inputs = triton.cdiv(inputs, segments * BLOCK_INPUTS) * BLOCK_INPUTS
    linear_kernel[(num_tiles, splits)](
        x, data, bias, add, out, partials, _counters(x.device) if splits > 1 else None,
        num_rows, outputs, inputs, x.stride(0), segment_inputs,
        ACTIVATION=activation, COMBINE="none" if add is None else "add", DTYPE=TL_DTYPES[x.dtype],
        EVEN=segment_inputs * segments == inputs, BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_K=BLOCK_INPUTS,
        SPLITS=splits, SEGMENTS=segments // splits, INTERPRETED=INTERPRETED, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out


def linear(x: torch.Tensor, weight: LinearWeight, activation: Activation, add: torch.Tensor | None) -> torch.Tensor:
    """See the public function; takes the plain layout."""
    assert weight.layout == "plain", f"the kernel cannot read a weight in {weight.layout} layout"
    data = weight.data if weight.data.is_contiguous() else weight.data.contiguous()
    return multiply(x, data, weight.bias, activation, add)
