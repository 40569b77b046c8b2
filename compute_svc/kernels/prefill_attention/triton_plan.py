"""What a step's prefill attention is made of for the Triton kernel: blocks of queries, in the order they start, and the kernel's tile sizes.

No Triton here: plans are made where it need not be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from compute_svc.kernels.attention_spec import AttentionSpec
from compute_svc.kernels.host_copy import Ids, to_device
from compute_svc.kernels.kv_chunks import slopes_of

_STORED = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn})
_MAX_HEAD_DIM = 256

# Rows of a block that a launch may be compiled for, where products are of 16 bits: 128 and 64 feed Hopper's warp group instructions, 16 is
# for few queries, whose time goes into reading keys.
_ROW_CHOICES = (128, 64, 16)

# Products in float32 do not use tensor cores: rows of numbers stay in registers.
_WIDE_ROWS = 16


class Limits(NamedTuple):
    """What tile sizes must fit a device: shared memory of a program in bytes, and multiprocessors."""

    shared_bytes: int
    num_multiprocessors: int


HOPPER = Limits(227 << 10, 132)


class Tiles(NamedTuple):
    """Sizes of one launch: rows of queries and tokens of keys per step of a program, its warps and the stages of its loads."""

    rows: int
    tokens: int
    num_warps: int
    num_stages: int


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
        limits: Of the device.
        tiles: Instead of those that `tiles_for` gives; to measure others.
    """

    blocks: torch.Tensor
    block_tokens: int
    rows: int
    page_table: torch.Tensor
    spec: AttentionSpec
    slopes: torch.Tensor | None
    limits: Limits
    tiles: Tiles | None = None


@cache
def covers(spec: AttentionSpec, device: torch.device) -> bool:
    """Whether the kernel computes this attention on a device; sinks and rounded slopes it does not, nor float8 before Ada."""
    if spec.sinks or spec.rounded_slopes or spec.scale <= 0 or spec.head_dim > _MAX_HEAD_DIM or spec.stored not in _STORED:
        return False
    return spec.stored != torch.float8_e4m3fn or device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def plan_triton(
    page_table: torch.Tensor, kv_lengths: Sequence[int], query_starts: Sequence[int], spec: AttentionSpec, *, tiles: Tiles | None = None
) -> TritonPrefillPlan:
    """Arguments as `plan_prefill` has them.

    Args:
        tiles: Instead of those chosen for the device.
    """
    limits = _limits(page_table.device)
    lengths, starts = np.array(kv_lengths, dtype=np.int64), np.array(query_starts, dtype=np.int64)
    rows = tiles.rows if tiles is not None else _rows(np.diff(starts), spec, limits)
    block_tokens = max(rows // pack_of(rows, spec), 1)
    (blocks,) = to_device([_blocks(lengths, starts, block_tokens)], page_table.device)
    slopes = slopes_of(spec, page_table.device)
    if page_table.stride(1) != 1:
        page_table = page_table.contiguous()
    return TritonPrefillPlan(blocks, block_tokens, rows, page_table, spec, None if slopes is None else slopes.view(-1), limits, tiles)


@cache
def _limits(device: torch.device) -> Limits:
    if device.type != "cuda":
        return HOPPER
    properties = torch.cuda.get_device_properties(device)
    return Limits(properties.shared_memory_per_block_optin, properties.multi_processor_count)


def pack_of(rows: int, spec: AttentionSpec) -> int:
    """How many heads of a key head a program has side by side: all, which reads keys once for them, unless that left many rows empty."""
    group = spec.group_size
    return group if group <= rows and rows // group * group >= 0.75 * rows else 1


def _rows(counts: Ids, spec: AttentionSpec, limits: Limits) -> int:
    """Rows of a block: as many as there are, but rather fewer than leave multiprocessors idle."""
    if spec.stored == torch.float32:
        return _WIDE_ROWS
    for rows in _ROW_CHOICES[:-1]:
        pack = pack_of(rows, spec)
        programs = int(np.ceil(counts / (rows // pack)).sum()) * spec.num_heads // pack
        fullest = int(counts.max(initial=0)) * pack
        if 2 * fullest > rows and 4 * programs >= 3 * limits.num_multiprocessors:
            return rows
    return _ROW_CHOICES[-1]


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
def tiles_for(rows: int, head_dim: int, number_bytes: int, coded: bool, limits: Limits) -> Tiles:
    """Tile sizes for products of numbers of so many bytes: the largest in the table that fit into shared memory.

    Args:
        rows: Rows of queries that the plan has.
        head_dim: D, a power of two.
        number_bytes: Of a number that is multiplied.
        coded: Whether keys and values are codes, which take shared memory besides the numbers that they stand for.
        limits: Of the device.
    """
    if number_bytes == 4:
        return Tiles(_WIDE_ROWS, 32 if head_dim <= 128 else 16, 4, 1)
    num_warps = 8 if rows == 128 else 4
    for tokens, num_stages in ((128, 3), (128, 2), (64, 3), (64, 2), (32, 2)):
        # Wide heads with many tokens do not fit into registers.
        if tokens * head_dim <= 128 * 128 and _shared_bytes(rows, tokens, num_stages, head_dim, coded) <= limits.shared_bytes:
            return Tiles(rows, tokens, num_warps, num_stages)
    return Tiles(min(rows, 64), 32, 4, 1)


def _shared_bytes(rows: int, tokens: int, num_stages: int, head_dim: int, coded: bool) -> int:
    """Queries, and keys and values in all stages; the largest that it may be."""
    per_token = 2 * head_dim * (2 * num_stages + 2 if coded else 2 * num_stages)
    return 2 * rows * head_dim + tokens * per_token


def flops(kv_lengths: Sequence[int], query_starts: Sequence[int], spec: AttentionSpec) -> int:
    """Floating-point operations that the two products of a layer need: 4 * D for each query head and key that it sees."""
    seen = 0
    for length, count in zip(kv_lengths, np.diff(np.array(query_starts)), strict=True):
        visible = np.arange(length - count + 1, length + 1, dtype=np.int64)
        if spec.window is not None:
            visible = np.minimum(visible, spec.window + np.minimum(spec.sinks, np.maximum(visible - spec.window, 0)))
        seen += int(visible.sum())
    return 4 * spec.head_dim * spec.num_heads * seen
