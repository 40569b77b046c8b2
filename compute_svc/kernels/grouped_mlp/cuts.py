"""How products with experts' weights are cut; chosen by reasoning, to be tuned on a device."""

from __future__ import annotations

from typing import NamedTuple

import torch

from compute_svc.kernels.backend import is_batch_invariant
from compute_svc.kernels.grouped_mlp.packed import GroupedMlps, GroupedWeight


class Cut(NamedTuple):
    """Tiles of one product; rows of a tile are the plan's.

    Attributes:
        n: Outputs of a tile; where gate and up are one product, of each.
        k: Inputs of a block, or numbers of 16 bits with several codes.
        warps: Of a program.
        stages: Blocks that are on their way.
    """

    n: int
    k: int
    warps: int
    stages: int


# Up to so many rows of an expert, on average: rows of a tile. Few tiles are left half empty, and most experts have one.
_ROWS = ((12, 16), (24, 32), (96, 64), (1 << 62, 128))
# Rows of a tile: cuts, the widest first, of gate and up and of one product alone; all but the last are for as many programs as `_PROGRAMS`.
# Numbers of two bytes.
_GATED_2 = {
    16: (Cut(64, 64, 4, 5), Cut(32, 128, 4, 4), Cut(16, 128, 2, 4)),
    32: (Cut(64, 64, 4, 4),),
    64: (Cut(64, 64, 4, 4),),
    128: (Cut(64, 64, 8, 3),),
}
_ALONE_2 = {
    16: (Cut(64, 128, 4, 4), Cut(32, 128, 4, 6), Cut(16, 128, 2, 6)),
    32: (Cut(64, 128, 4, 3),),
    64: (Cut(128, 64, 8, 4), Cut(64, 64, 4, 5)),
    128: (Cut(128, 64, 8, 3),),
}
# Codes of one byte. Matrix units add up products of float8 in fewer bits than float32 has, over no more inputs than these.
_GATED_1 = {
    16: (Cut(64, 128, 4, 5), Cut(32, 128, 4, 6), Cut(16, 128, 2, 6)),
    32: (Cut(64, 128, 4, 4),),
    64: (Cut(64, 128, 4, 4),),
    128: (Cut(64, 128, 8, 3),),
}
_ALONE_1 = {
    16: (Cut(64, 128, 4, 6), Cut(32, 128, 4, 6), Cut(16, 128, 2, 6)),
    32: (Cut(64, 128, 4, 5),),
    64: (Cut(128, 128, 8, 4), Cut(64, 128, 4, 5)),
    128: (Cut(128, 128, 8, 3),),
}
# Codes in numbers of 16 bits that meet numbers of two bytes.
_GROUPS = {16: Cut(64, 64, 4, 3), 32: Cut(64, 64, 4, 3), 64: Cut(64, 32, 8, 3)}
# What is scaled before it is summed needs room in registers, too.
_MOST_ROWS_OF_GROUPS = 64
_MOST_INPUTS = {True: 128, False: 64}
# Gate and up of 64 rows, where matrix units take both factors from registers: before Hopper.
_GROUPS_IN_REGISTERS = Cut(64, 16, 8, 3)
# Without matrix units: registers hold the blocks.
_WIDE = Cut(32, 32, 4, 2)
_PROGRAMS = 264
# Bits may not depend on the number of rows: with fewer outputs, another instruction would multiply; blocks of codes are as short as any.
_INVARIANT_OUTPUTS = 64
_SHORTEST_CODES = {True: 32, False: 16}
_FEWEST_CODES = 16


def rows_of_tile(num_rows: int, mlps: GroupedMlps, dtype: torch.dtype) -> int:
    """For so many rows in all, tokens times experts of each; dtype of tokens."""
    mean = num_rows / min(mlps.count, num_rows)
    rows = 16 if dtype == torch.float32 else next(rows for most, rows in _ROWS if mean <= most)
    return min(rows, _MOST_ROWS_OF_GROUPS) if mlps.into.is_grouped or mlps.down.is_grouped else rows


def cut_for(weight: GroupedWeight, rows: int, num_tiles: int, outputs: int, dtype: torch.dtype, *, is_gated: bool, is_hopper: bool) -> Cut:
    """The cut of a product.

    Args:
        weight: Of all experts.
        rows: Of a tile.
        num_tiles: Of rows, at most.
        outputs: Of an expert; where gate and up are one product, of each.
        dtype: Of tokens.
        is_gated: Whether gate and up are one product.
        is_hopper: See `device_features.has_wgmma`.
    """
    if weight.format == "groups":
        return _cut_of_codes(weight, rows, dtype, is_gated=is_gated, is_hopper=is_hopper)
    if weight.format == "float" and dtype == torch.float32:
        return _WIDE
    table = (_GATED_2 if is_gated else _ALONE_2) if weight.format == "float" else (_GATED_1 if is_gated else _ALONE_1)
    if is_batch_invariant():
        cut = next(cut for cut in reversed(table[rows]) if cut.n >= _INVARIANT_OUTPUTS)
        cut = cut._replace(k=64 if weight.format == "float" else 128)
    else:
        cut = next((cut for cut in table[rows] if num_tiles * -(-outputs // cut.n) >= _PROGRAMS), table[rows][-1])
    if not weight.is_grouped:
        return cut
    k = min(cut.k, weight.group & -weight.group, _MOST_INPUTS[is_hopper])
    return cut._replace(k=k, warps=8 if rows == _MOST_ROWS_OF_GROUPS and is_hopper else cut.warps)


def _cut_of_codes(weight: GroupedWeight, rows: int, dtype: torch.dtype, *, is_gated: bool, is_hopper: bool) -> Cut:
    """The cut of a product with codes in groups; see `cut_for`."""
    cut, shortest = _WIDE if dtype == torch.float32 else _GROUPS[rows], _SHORTEST_CODES[is_hopper]
    if rows == _MOST_ROWS_OF_GROUPS and is_gated and not is_hopper:
        cut = _GROUPS_IN_REGISTERS
    if weight.offsets is not None and is_gated:
        # Those of gate and up take registers, too.
        cut, shortest = cut._replace(n=cut.n if is_hopper else 32, k=max(cut.k // 2, _FEWEST_CODES)), _FEWEST_CODES
    return cut._replace(k=min(cut.k, shortest if is_batch_invariant() else cut.k, weight.block))
