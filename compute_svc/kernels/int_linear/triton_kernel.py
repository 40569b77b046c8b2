"""Codes of 8 bits by codes of 8 bits: int8 summed in int32, float8 in float32.

A tile of the result lies on its side, outputs by rows: a weight is the left operand, so that few rows of activations fill matrix
instructions that want 64 on their left. For few rows a product is as fast as its weight is read, and several programs share a tile, each
with a part of the inputs; the last of them to end adds the parts in their order. Sums of integers are exact until they are scaled, so a row
of the result has the same bits whatever the tiles are. Sums of float8, and of groups with scales of their own, are in one order where
`backend.is_batch_invariant`: blocks and parts are then the same for every number of rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.backend import is_batch_invariant
from compute_svc.kernels.int_linear.packed import PackedInts
from compute_svc.kernels.quantise_rows import QuantisedRows
from compute_svc.kernels.row_linear import row_code_linear, takes_row
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, activated, dot, rounded, sum_of_splits, tile_of

# Rows whose tiles go together through all weights: as many as 264 tiles of 128 by 128, two on each multiprocessor, are long on a side. Fewer
# would read the weights from memory more often, more the rows from the second-level cache.
ROWS_ABREAST = tl.constexpr(2048)


@triton.jit
def product(weights, rows, acc, INTEGERS: tl.constexpr, INTERPRETED: tl.constexpr):
    """acc + weights rows, of codes; the interpreter multiplies integers as float32, which are exact for so few inputs, and quicker there."""
    if not INTEGERS:
        result = dot(weights, rows, acc, INTERPRETED)
    elif INTERPRETED:
        result = acc + tl.dot(weights.to(tl.float32), rows.to(tl.float32), input_precision="ieee").to(tl.int32)
    else:
        result = tl.dot(weights, rows, acc, out_dtype=tl.int32)
    return result


@triton.jit
def finish(
    total, bias, other, out, n, m, N, inside,
    ACTIVATION: tl.constexpr, COMBINE: tl.constexpr, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Writes activation(total + bias) combined with `other`; total [n, m] float32, out and other [M, N]."""
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    total = activated(total, ACTIVATION)
    places = m.to(tl.int64)[None, :] * N + n[:, None]
    if COMBINE == "add":
        total += tl.load(other + places, mask=inside, other=0.0).to(tl.float32)
    if COMBINE == "mul":
        total *= tl.load(other + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, rounded(total, DTYPE, INTERPRETED), mask=inside)


@triton.jit
def end_scaled(
    total, row_scales, row_sums, scales, offsets, bias, other, out, n, m, M, N,
    ACTIVATION: tl.constexpr, COMBINE: tl.constexpr, DTYPE: tl.constexpr, GROUP: tl.constexpr, ROWS_IN_GROUPS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Scales sums [n, m] by what they are not scaled by yet, and finishes them; see `int_linear_kernel`."""
    result = total.to(tl.float32)
    if not ROWS_IN_GROUPS:
        row_scale = tl.load(row_scales + m, mask=m < M, other=0.0)
        result *= row_scale[None, :]
    if GROUP == 0:
        result *= tl.load(scales + n, mask=n < N, other=0.0)[:, None]
        if offsets is not None:
            sums = tl.load(row_sums + m, mask=m < M, other=0).to(tl.float32) * row_scale
            result += sums[None, :] * tl.load(offsets + n, mask=n < N, other=0.0)[:, None]
    finish(result, bias, other, out, n, m, N, (n < N)[:, None] & (m < M)[None, :], ACTIVATION, COMBINE, DTYPE, INTERPRETED)


@triton.jit(do_not_specialize=["M"])
def int_linear_kernel(
    rows, row_scales, row_sums, weight, scales, offsets, bias, other, out, partials, counters,
    M, N, K, row_stride, row_group_stride, output_stride, group_stride, split_inputs,
    ACTIVATION: tl.constexpr, COMBINE: tl.constexpr, DTYPE: tl.constexpr,
    INTEGERS: tl.constexpr, GROUP: tl.constexpr, ROWS_IN_GROUPS: tl.constexpr, BY_GROUPS: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One tile of rows weight^T, or what `split_inputs` inputs have of it; a grid of tiles and splits.

    rows [M, K] and weight [N, K] codes; scales [N, groups] float32, of groups of GROUP inputs, which blocks of inputs do not cross, with these
    strides; row_scales [M, groups] if ROWS_IN_GROUPS, else [M], alike. Where GROUP is 0 all inputs are one group, scales and offsets [N].
    BY_GROUPS: row_scales go on to the end of the last tile. row_sums [M] int32; bias [N]; other and out [M, N]; partials [SPLITS, M, N];
    counters [tiles] zeros. EVEN: splits are whole blocks, all within K.
    """
    ACC: tl.constexpr = tl.int32 if INTEGERS else tl.float32
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), ROWS_ABREAST // BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    # Beyond the last there is the last again: loads need no masks, and what comes of it is not written.
    read_n, read_m = tl.minimum(n, N - 1), tl.minimum(m, M - 1)
    k = tl.arange(0, BLOCK_K)
    begin = tl.program_id(1) * split_inputs
    end = min(begin + split_inputs, K)
    weight_places = weight + read_n.to(tl.int64)[:, None] * K + (begin + k)[None, :]
    row_places = rows + read_m.to(tl.int64)[None, :] * K + (begin + k)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=ACC if GROUP == 0 else tl.float32)
    for first in range(begin, end, BLOCK_K):
        if EVEN:
            codes, x = tl.load(weight_places), tl.load(row_places)
        else:
            codes = tl.load(weight_places, mask=(first + k < K)[None, :], other=0.0)
            x = tl.load(row_places, mask=(first + k < K)[:, None], other=0.0)
        if GROUP:
            # Loaded before the product, whose time hides how long that takes.
            scale = tl.load(scales + first // GROUP * group_stride + read_n * output_stride)
            if ROWS_IN_GROUPS:
                row_scale = tl.load(row_scales + first // GROUP * row_group_stride + (m if BY_GROUPS else read_m) * row_stride)
            part = product(codes, x, tl.zeros((BLOCK_N, BLOCK_M), dtype=ACC), INTEGERS, INTERPRETED).to(tl.float32)
            if ROWS_IN_GROUPS:
                part *= row_scale[None, :]
            total += part * scale[:, None]
        elif not INTEGERS:
            # Matrix units add up float8 products in fewer bits than float32 has: not over more than a block.
            total += product(codes, x, tl.zeros((BLOCK_N, BLOCK_M), dtype=ACC), INTEGERS, INTERPRETED)
        else:
            total = product(codes, x, total, INTEGERS, INTERPRETED)
        weight_places += BLOCK_K
        row_places += BLOCK_K
    inside = (n < N)[:, None] & (m < M)[None, :]
    total, is_last = sum_of_splits(total, partials, counters, m, n, M, N, inside, SPLITS)
    if is_last:
        if BLOCK_M >= 128 and (COMBINE != "none" or SPLITS > 1):
            # In halves, the second's numbers after the first's: registers for all at once would leave none to a second program, or not be enough.
            some, others = total.reshape(BLOCK_N, 2, BLOCK_M // 2).permute(0, 2, 1).split()
            half_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M // 2)
            end_scaled(
                some, row_scales, row_sums, scales, offsets, bias, other, out, n, half_m, M, N,
                ACTIVATION, COMBINE, DTYPE, GROUP, ROWS_IN_GROUPS, INTERPRETED,
            )  # fmt: skip
            tl.debug_barrier()
            end_scaled(
                others, row_scales, row_sums, scales, offsets, bias, other, out, n, half_m + BLOCK_M // 2, M, N,
                ACTIVATION, COMBINE, DTYPE, GROUP, ROWS_IN_GROUPS, INTERPRETED,
            )  # fmt: skip
        else:
            end_scaled(
                total, row_scales, row_sums, scales, offsets, bias, other, out, n, m, M, N,
                ACTIVATION, COMBINE, DTYPE, GROUP, ROWS_IN_GROUPS, INTERPRETED,
            )  # fmt: skip


class Tiles(NamedTuple):
    """How a product is cut.

    Attributes:
        m: Rows of a tile.
        n: Outputs of a tile.
        k: Inputs of a block.
        warps: Of a program.
        stages: Blocks that are on their way.
        programs: How many there should be for the GPU to be busy.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    programs: int


# Up to so many rows, the cut. Small tiles keep three programs on each of 132 multiprocessors, and 50 KB on their way to each.
_TILES = (
    (16, Tiles(16, 64, 256, 4, 3, 396)),
    (32, Tiles(32, 64, 256, 4, 3, 396)),
    (64, Tiles(64, 64, 128, 4, 4, 396)),
    (128, Tiles(128, 64, 128, 4, 3, 264)),
    (1 << 62, Tiles(128, 128, 128, 8, 3, 132)),
)
_EXACT_INPUTS = 128
# As many as a tile has. Scales of more are laid out by groups before a product: the 32 that each thread takes of 128 rows, all in other lines
# of the cache, would take longer than the product of a block.
FEW_ROWS = 128
_MOST_SPLITS = 8
# Fewer blocks would not fill the stages.
_LEAST_BLOCKS = 2
# More than there are tiles where there are fewer than programs should be.
_MOST_SHARED_TILES = 512


def tiles_for(num_rows: int, *, is_float: bool = False) -> Tiles:
    """The cut of a product of so many rows; matrix units add up products of float8 over a block of inputs, in fewer bits than float32 has."""
    tiles = next(tiles for most, tiles in _TILES if num_rows <= most)
    return tiles._replace(k=_EXACT_INPUTS, stages=max(tiles.stages, 4)) if is_float and tiles.k > _EXACT_INPUTS else tiles


def splits_for(tiles: Tiles, num_tiles: int, inputs: int) -> int:
    """How many programs share a tile: a power of two."""
    most = min(tiles.programs // num_tiles, inputs // (tiles.k * _LEAST_BLOCKS), _MOST_SPLITS)
    return 1 << (max(most, 1).bit_length() - 1)


def fixed_cut(num_rows: int, outputs: int, inputs: int, *, is_float: bool) -> tuple[Tiles, int]:
    """Tiles for so many rows, and how many programs share one, of sums in one order: blocks and splits are the weight's alone."""
    fewest = _TILES[0][1]._replace(k=_EXACT_INPUTS)
    tiles = tiles_for(num_rows, is_float=is_float)._replace(k=_EXACT_INPUTS)
    return tiles, splits_for(fewest, triton.cdiv(outputs, fewest.n), inputs)


def most_rows(tiles: Tiles, splits: int, outputs: int) -> int:
    """How many rows a launch can have: the tiles that are shared are counted."""
    return _MOST_SHARED_TILES // triton.cdiv(outputs, tiles.n) * tiles.m if splits > 1 else 1 << 62


class Codes(NamedTuple):
    """A weight of codes of 8 bits.

    Attributes:
        data: [N, K], contiguous.
        group: Inputs that share a scale.
        scales: [N, G] float32; best `by_groups`.
        offsets: As scales, for one group alone; None = zero.
        bias: [N] floating; None = zero.
        counters: Of `new_counters`.
    """

    data: torch.Tensor
    group: int
    scales: torch.Tensor
    offsets: torch.Tensor | None
    bias: torch.Tensor | None
    counters: torch.Tensor


def multiply(
    rows: QuantisedRows,
    weight: Codes,
    activation: Activation,
    other: torch.Tensor | None,
    dtype: torch.dtype,
    *,
    combine: str = "add",
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """activation(rows W^T + bias), and `other` added to it or multiplied by it: "add" or "mul". Tiles: None = those for so many rows."""
    (num_rows, inputs), outputs = rows.codes.shape, len(weight.data)
    out = torch.empty((num_rows, outputs), dtype=dtype, device=rows.codes.device)
    if num_rows == 0:
        return out
    is_float = rows.codes.is_floating_point()
    num_groups, row_groups = weight.scales.shape[1], rows.scales.shape[1]
    splits = None
    if tiles is None and is_batch_invariant() and (is_float or num_groups > 1):
        tiles, splits = fixed_cut(num_rows, outputs, inputs, is_float=is_float)
        most = most_rows(tiles, splits, outputs)
        if num_rows > most:
            pieces = [
                (slice(first, first + most), QuantisedRows(*(one[first : first + most] for one in rows)))
                for first in range(0, num_rows, most)
            ]
            return torch.cat(
                [multiply(part, weight, activation, None if other is None else other[at], dtype, combine=combine) for at, part in pieces]
            )
    tiles = tiles_for(num_rows, is_float=is_float) if tiles is None else tiles
    block = tiles.k if num_groups == 1 else min(tiles.k, weight.group & -weight.group)
    num_tiles = triton.cdiv(num_rows, tiles.m) * triton.cdiv(outputs, tiles.n)
    splits = splits_for(tiles, num_tiles, inputs) if splits is None else splits
    split_inputs = triton.cdiv(inputs, splits * block) * block
    partials = None
    if splits > 1:
        summed = torch.float32 if is_float or num_groups > 1 else torch.int32
        partials = torch.empty((splits, num_rows, outputs), dtype=summed, device=out.device)
    other = None if other is None else other.contiguous()
    row_scales = by_groups(rows.scales) if num_rows > FEW_ROWS and not _is_by_groups(rows.scales) else rows.scales
    sums = None if weight.offsets is None else rows.codes.sum(dim=1, dtype=torch.int32)
    int_linear_kernel[(num_tiles, splits)](
        rows.codes, row_scales, sums, weight.data, weight.scales, weight.offsets, weight.bias, other, out, partials, weight.counters,
        num_rows, outputs, inputs, *row_scales.stride(), *weight.scales.stride(), split_inputs,
        ACTIVATION=activation, COMBINE="none" if other is None else combine, DTYPE=TL_DTYPES[dtype],
        INTEGERS=not is_float, GROUP=weight.group if num_groups > 1 else 0, ROWS_IN_GROUPS=row_groups > 1, BY_GROUPS=_is_by_groups(row_scales),
        EVEN=split_inputs * splits == inputs,
        BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_K=block, SPLITS=splits, INTERPRETED=INTERPRETED,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out


def int_linear(
    rows: QuantisedRows, weight: PackedInts, activation: Activation, add: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """See the public function; takes the triton layout."""
    codes = _codes(weight)
    if (
        takes_row(rows.codes)
        and codes.offsets is None
        and rows.scales.shape[1] == codes.scales.shape[1] == 1
        and not weight.in_features % 4
    ):
        return row_code_linear(rows, codes.data, codes.scales, codes.bias, activation=activation, add=add, dtype=dtype)
    return multiply(rows, codes, activation, add, dtype)


def int_gated_linear(rows: QuantisedRows, gate: PackedInts, up: PackedInts, activation: Activation, dtype: torch.dtype) -> torch.Tensor:
    """See the public function; takes the triton layout."""
    activated_gate = multiply(rows, _codes(gate), activation, None, torch.float32)
    return multiply(rows, _codes(up), "none", activated_gate, dtype, combine="mul")


def lay_out(plain: PackedInts) -> PackedInts:
    """A weight in the kernel's layout: one scale for each output, or no offsets and groups of multiples of `LEAST_GROUP`."""
    scales, counters = by_groups(plain.scales), new_counters(plain.data.device)
    return replace(plain, layout="triton", data=plain.data.contiguous(), scales=scales, counters=counters)


def empty_by_groups(shape: tuple[int, int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """For scales [rows, G], those of one group side by side, and as long as whole tiles: these have them in few transactions, without masks."""
    num_rows, num_groups = shape
    if num_groups == 1:
        return torch.empty(shape, dtype=dtype, device=device)
    # What is between rows and the end of a tile may be anything; the interpreter warns of what is computed with it.
    make = torch.zeros if INTERPRETED else torch.empty
    return make((num_groups, _in_tiles(num_rows)), dtype=dtype, device=device)[:, :num_rows].t()


def by_groups(scales: torch.Tensor) -> torch.Tensor:
    """Scales [rows, G], laid out like that."""
    num_rows, num_groups = scales.shape
    return scales if num_groups == 1 else empty_by_groups((num_rows, num_groups), dtype=scales.dtype, device=scales.device).copy_(scales)


def _is_by_groups(scales: torch.Tensor) -> bool:
    return scales.shape[1] > 1 and scales.stride(0) == 1 and scales.stride(1) >= _in_tiles(len(scales))


def _in_tiles(num_rows: int) -> int:
    return -(-num_rows // FEW_ROWS) * FEW_ROWS


def new_counters(device: torch.device) -> torch.Tensor:
    """For one weight."""
    return torch.zeros(_MOST_SHARED_TILES, dtype=torch.int32, device=device)


def _codes(weight: PackedInts) -> Codes:
    assert weight.layout == "triton" and weight.counters is not None, f"the kernel cannot read a weight in {weight.layout} layout"
    return Codes(weight.data, weight.group, weight.scales, weight.offsets, weight.bias, weight.counters)
