"""What a step's prefill attention is made of for the Triton kernel: blocks of queries, in the order they start, and sizes of tiles.

No Triton here: plans are made where it need not be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.kv_chunks import slopes_of
from compute_svc.kernels.backend import is_batch_invariant
from compute_svc.kernels.device_features import has_float8
from compute_svc.kernels.host.host_copy import Ids, to_device
from compute_svc.kernels.prefill_attention.splits import LEAST_SPLIT_TOKENS, Splits, buffers, share

_STORED = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn})
_MAX_HEAD_DIM = 256


class Device(NamedTuple):
    """What sizes are chosen for: whether a program may have as much shared memory as on Hopper, and how many multiprocessors there are."""

    has_large_shared: bool
    num_multiprocessors: int


HOPPER = Device(True, 132)


class Tiles(NamedTuple):
    """Sizes of one launch: rows of queries of a program, tokens of keys in one of its steps, its warps and the stages of its loads."""

    rows: int
    tokens: int
    num_warps: int
    num_stages: int


# Rows of a block where products are of 16 bits: 128 and 64 feed Hopper's warp group instructions, 16 is for few queries, whose time goes
# into reading keys.
_ROWS = (128, 64, 16)

# Those of every block where bits may not depend on the batch. A tile of tokens begins at a multiple of its size, and what a row does not see
# of a tile changes nothing of it: so its bits depend on the tile's size alone, not on the block that it is in.
_INVARIANT_ROWS = 64

# By whether shared memory is Hopper's and whether more than scores is computed, then by the width of heads: tiles for each of _ROWS. All of
# them fit into registers; where 128 rows do not, blocks of 128 are computed in parts. Of five stages, two are for looking up pages and two
# for reading ahead.
_TILES = {
    (True, False): {
        64: (Tiles(128, 128, 8, 5), Tiles(64, 128, 4, 5), Tiles(16, 128, 4, 5)),
        128: (Tiles(128, 128, 8, 5), Tiles(64, 64, 4, 5), Tiles(16, 128, 4, 5)),
        256: (Tiles(128, 32, 8, 5), Tiles(64, 32, 4, 5), Tiles(16, 64, 4, 5)),
    },
    (True, True): {
        64: (Tiles(128, 64, 8, 5), Tiles(64, 64, 4, 5), Tiles(16, 64, 4, 5)),
        128: (Tiles(128, 64, 8, 5), Tiles(64, 64, 4, 5), Tiles(16, 64, 4, 5)),
        256: (Tiles(64, 32, 8, 5), Tiles(64, 32, 8, 5), Tiles(16, 32, 4, 5)),
    },
    (False, False): {
        64: (Tiles(128, 64, 8, 5), Tiles(64, 64, 4, 5), Tiles(16, 64, 4, 5)),
        128: (Tiles(128, 32, 8, 5), Tiles(64, 32, 4, 5), Tiles(16, 64, 4, 5)),
        256: (Tiles(64, 32, 8, 3), Tiles(64, 32, 8, 3), Tiles(16, 32, 4, 3)),
    },
    (False, True): {
        64: (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 5), Tiles(16, 64, 4, 5)),
        128: (Tiles(64, 32, 4, 5), Tiles(64, 32, 4, 5), Tiles(16, 64, 4, 5)),
        256: (Tiles(64, 32, 8, 3), Tiles(64, 32, 8, 3), Tiles(16, 32, 4, 3)),
    },
}

# Products in float32 do without tensor cores and shared memory: few rows, so that registers hold them.
_FLOAT32_TILES = {64: Tiles(16, 32, 4, 1), 128: Tiles(16, 32, 4, 1), 256: Tiles(16, 16, 4, 1)}


@dataclass(frozen=True, slots=True, eq=False)
class TritonPrefillPlan:
    """What all layers of a step share.

    Attributes:
        blocks: [B, 4] int64, some consecutive queries of a request each: the request, its first row, how many, position of the first.
        block_tokens: Most queries of a block.
        rows: Rows of queries that a program has where products are of 16 bits.
        page_table: [R, max_pages] int64, pages of a row next to each other.
        spec: The model's attention.
        slopes: [num_heads] float32; None = none.
        device: What it is for.
        splits: How programs share blocks, a row of `blocks` each; None = a program has all of a block's tokens.
        tiles: Instead of those that `tiles_for` gives; to measure others.
    """

    blocks: torch.Tensor
    block_tokens: int
    rows: int
    page_table: torch.Tensor
    spec: AttentionSpec
    slopes: torch.Tensor | None
    device: Device
    splits: Splits | None = None
    tiles: Tiles | None = None


@cache
def covers(spec: AttentionSpec, device: torch.device) -> bool:
    """Whether the kernel computes this attention on a device; sinks and rounded slopes it does not, nor float8 before Ada."""
    if spec.sinks or spec.rounded_slopes or spec.scale <= 0 or spec.head_dim > _MAX_HEAD_DIM or spec.stored not in _STORED:
        return False
    return spec.stored != torch.float8_e4m3fn or device.type != "cuda" or has_float8(device)


def plan_triton(
    page_table: torch.Tensor,
    kv_lengths: Sequence[int],
    query_starts: Sequence[int],
    spec: AttentionSpec,
    *,
    tiles: Tiles | None = None,
    split_tokens: int | None = None,
) -> TritonPrefillPlan:
    """Arguments as `plan_prefill` has them.

    Args:
        tiles: Instead of those chosen for the device.
        split_tokens: Most tokens of a split, a multiple of `splits.UNIT_TOKENS`; None = as the device and the load ask for.
    """
    device = _described(page_table.device)
    lengths, starts = np.array(kv_lengths, dtype=np.int64), np.array(query_starts, dtype=np.int64)
    rows = tiles.rows if tiles is not None else _rows(np.diff(starts), lengths, spec, device)
    pack = pack_of(rows, spec)
    block_tokens = max(rows // pack, 1)
    blocks, splits = _blocks(lengths, starts, block_tokens), None
    # Where bits may not depend on the batch, nothing is split: fixed splits would have to be those of whole prompts, too, of which every query
    # would hand in all of its values again and again.
    shares = None if is_batch_invariant() else share(blocks, spec, _programs(rows, spec, device) * pack // spec.num_heads, split_tokens)
    if shares is None:
        (on_device,) = to_device([blocks], page_table.device)
    else:
        on_device, items = to_device([blocks[shares.blocks], shares.items], page_table.device)
        splits = buffers(shares, items, spec)
    slopes = slopes_of(spec, page_table.device)
    if page_table.stride(1) != 1:
        page_table = page_table.contiguous()
    slopes = None if slopes is None else slopes.view(-1)
    return TritonPrefillPlan(on_device, block_tokens, rows, page_table, spec, slopes, device, splits, tiles)


def _programs(rows: int, spec: AttentionSpec, device: Device) -> int:
    """How many programs run at a time, by what compiling ahead of time tells of registers and shared memory."""
    each = 3 if spec.stored == torch.float32 else 2 if rows == 64 else 1
    return each * device.num_multiprocessors


@cache
def _described(device: torch.device) -> Device:
    if device.type != "cuda":
        return HOPPER
    # Of compute capability 9 and 10, 228 KiB of a multiprocessor; 12 has 100 again.
    large = torch.cuda.get_device_capability(device)[0] in (9, 10)
    return Device(large, torch.cuda.get_device_properties(device).multi_processor_count)


def pack_of(rows: int, spec: AttentionSpec) -> int:
    """How many heads of a key head a program has side by side: all, which reads keys once for them, unless that left many rows empty."""
    group = spec.group_size
    return group if group <= rows and rows // group * group >= 0.75 * rows else 1


def _rows(counts: Ids, lengths: Ids, spec: AttentionSpec, device: Device) -> int:
    """Rows of a block: as many as there are, but rather fewer than leave multiprocessors idle, whatever is split."""
    if spec.stored == torch.float32:
        return _ROWS[-1]
    if is_batch_invariant():
        return _INVARIANT_ROWS
    seen = lengths if spec.window is None else np.minimum(lengths, counts + spec.window)
    most_splits = np.maximum(seen // LEAST_SPLIT_TOKENS, 1)
    for rows in _ROWS[:-1]:
        pack = pack_of(rows, spec)
        programs = int((-(-counts // (rows // pack)) * most_splits).sum()) * spec.num_heads // pack
        fullest = int(counts.max(initial=0)) * pack
        if 2 * fullest > rows and 4 * programs >= 3 * device.num_multiprocessors:
            return rows
    return _ROWS[-1]


def _blocks(lengths: Ids, starts: Ids, size: int) -> Ids:
    """[B, 4]: longest request first, and of a request the last queries first, which see most.

    So short blocks come last, and those that read the same keys run at the same time.
    """
    counts = np.diff(starts)
    order = np.argsort(-lengths, kind="stable")
    per_request = -(-counts // size)
    requests = np.repeat(order, per_request[order])
    ends = np.cumsum(per_request[order])
    # Counted down to zero within each request.
    index = np.repeat(ends, per_request[order]) - 1 - np.arange(len(requests))
    skipped = index * size
    blocks = np.empty((len(requests), 4), dtype=np.int64)
    blocks[:, 0] = requests
    blocks[:, 1] = starts[requests] + skipped
    blocks[:, 2] = np.minimum(counts[requests] - skipped, size)
    blocks[:, 3] = lengths[requests] - counts[requests] + skipped
    return blocks


@cache
def tiles_for(rows: int, head_dim: int, dtype: torch.dtype, heavy: bool, device: Device) -> Tiles:
    """Sizes for a plan's rows.

    Args:
        rows: Of a block.
        head_dim: D, at most 256.
        dtype: Of what is multiplied.
        heavy: Whether registers are needed for more than scores: keys and values are codes, or there are slopes.
        device: Where it runs.
    """
    width = next(width for width in _FLOAT32_TILES if head_dim <= width)
    if dtype == torch.float32:
        return _FLOAT32_TILES[width]
    return _TILES[device.has_large_shared, heavy][width][_ROWS.index(rows)]


def flops(kv_lengths: Sequence[int], query_starts: Sequence[int], spec: AttentionSpec) -> int:
    """Floating-point operations that the two products of a layer need: 4 * D for each query head and key that it sees."""
    seen = 0
    for length, count in zip(kv_lengths, np.diff(np.array(query_starts)), strict=True):
        visible = np.arange(length - count + 1, length + 1, dtype=np.int64)
        if spec.window is not None:
            visible = np.minimum(visible, spec.window + np.minimum(spec.sinks, np.maximum(visible - spec.window, 0)))
        seen += int(visible.sum())
    return 4 * spec.head_dim * spec.num_heads * seen
