"""What the Triton kernel of decode attention is launched with: which models it covers, its tiles, and the plan of a step. Knows no Triton."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.kv_chunks import CHUNK_TOKENS
from compute_svc.kernels.device_features import has_float8

_log = logging.getLogger(__name__)

BLOCK_HEADS = 16
"""Query heads of a program: the fewest rows that tensor cores multiply. Larger groups take several programs, smaller ones are filled up."""

ITEM_NUMBERS = 8
"""int32 numbers that say what a program does: see `plan_kernel`."""

# Where kernels are interpreted there are no processors; as many as make some splits.
_INTERPRETED_PROCESSORS = 8

_STORED = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn})

_MAX_HEAD_DIM = 256

# A multiple of all tiles.
_INVARIANT_SPLIT_TOKENS = 512

# Of programs, up to which splits are made even; with more the last one weighs little.
_WAVES = 4


@dataclass(frozen=True, slots=True)
class TileShape:
    """How programs read keys and values.

    Attributes:
        tokens: Of a tile.
        warps: Of a program.
        stages: Tiles of which loads are under way or computed with, at a time.
        programs: So many on a processor keep its memory busy.
        resident: So many run on a processor at a time.
    """

    tokens: int
    warps: int
    stages: int
    programs: int
    resident: int


# By bytes of a stored number and the head dimension as a power of two. What compiling ahead of time tells of registers and shared memory is what
# `resident` comes from: codes take registers, numbers shared memory.
_TILES = {
    (4, 64): TileShape(32, 4, 2, 2, 2),
    (4, 128): TileShape(16, 4, 2, 2, 2),
    (4, 256): TileShape(16, 8, 2, 2, 2),
    (2, 64): TileShape(128, 4, 3, 2, 3),
    (2, 128): TileShape(64, 4, 3, 2, 3),
    (2, 256): TileShape(32, 4, 3, 2, 2),
    (1, 64): TileShape(128, 4, 4, 3, 3),
    (1, 128): TileShape(64, 4, 4, 2, 2),
    (1, 256): TileShape(32, 4, 4, 2, 2),
}


def tile_shape(spec: AttentionSpec) -> TileShape:
    """The tile of a model; the same for whatever batch, so that it moves no border of a sum."""
    return _TILES[spec.stored.itemsize, max(padded(spec.head_dim), 64)]


def padded(head_dim: int) -> int:
    """The width that a block of heads has: a power of two, at least what tensor cores need of each half."""
    return max(32, 1 << (head_dim - 1).bit_length())


def head_blocks(spec: AttentionSpec) -> int:
    """Programs that the query heads of a key head take."""
    return -(-spec.group_size // BLOCK_HEADS)


@dataclass(frozen=True, slots=True, eq=False)
class TritonDecodePlan:
    """What all layers of a step share. Read by kernels of one stream at a time: layers use its buffers one after the other.

    Attributes:
        page_table: [R, max_pages] int64, with pages next to each other.
        spec: The model's attention.
        items: [W, ITEM_NUMBERS] int32, the work of W programs for each block of heads, derived on the device.
        counters: [R * kv_heads * head blocks] int32, how many splits of a request and block are done; zeros between launches.
        partials: [W, num_heads, D] float32, weighted values of a split.
        stats: [W, num_heads, 2] float32, largest score and sum of weights of a split.
        slopes: [num_heads] float32; None if there are none.
        fixed_split_tokens: Splits begin at multiples of so many tokens, so that equal requests get equal bits in whatever batch; None = by load.
    """

    page_table: torch.Tensor
    spec: AttentionSpec
    items: torch.Tensor
    counters: torch.Tensor
    partials: torch.Tensor
    stats: torch.Tensor
    slopes: torch.Tensor | None
    fixed_split_tokens: int | None


class Splits(NamedTuple):
    """How many splits of all requests together a device wants.

    Attributes:
        wanted: They keep it busy, at least 1.
        most: They run at a time, at least as many.
    """

    wanted: int
    most: int


def wanted_splits(spec: AttentionSpec, device: torch.device) -> Splits:
    """For a model on a device."""
    tile, each = tile_shape(spec), spec.num_kv_heads * head_blocks(spec)
    wanted = max(1, tile.programs * _processors(device) // each)
    return Splits(wanted, max(wanted, tile.resident * _processors(device) // each))


def num_items(num_requests: int, max_kv_tokens: int, spec: AttentionSpec, device: torch.device, fixed_split_tokens: int | None) -> int:
    """The most splits that requests can have, whatever their lengths up to a bound."""
    if fixed_split_tokens is None:
        splits, tiles = wanted_splits(spec, device), num_requests * math.ceil(max_kv_tokens / tile_shape(spec).tokens)
        fewest = num_requests + min(splits.wanted, tiles)
        return fewest if num_requests <= splits.wanted else max(fewest, min(_WAVES * splits.most, _WAVES * num_requests, tiles))
    seen = max_kv_tokens if spec.window is None else min(max_kv_tokens, spec.window + fixed_split_tokens)
    return num_requests * max(1, math.ceil(seen / fixed_split_tokens))


def invariant_split_tokens(spec: AttentionSpec) -> int:
    """Splits of a model whose bits may not depend on the batch: as long as fill a device with one long request, and as few as can be.

    Where a window lets tokens be dropped, which go in chunks, splits begin where chunks do whatever was dropped.
    """
    return CHUNK_TOKENS if spec.window is not None else _INVARIANT_SPLIT_TOKENS


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _INTERPRETED_PROCESSORS


@cache
def covers(spec: AttentionSpec, device: torch.device) -> bool:
    """Whether the kernel computes this attention on a device. Effects: logs where it does not, once."""
    if spec.sinks:
        reason = "there are attention sinks"
    elif spec.rounded_slopes and spec.slopes is not None:
        reason = "slopes are rounded"
    elif spec.head_dim > _MAX_HEAD_DIM:
        reason = f"heads are {spec.head_dim} wide, more than {_MAX_HEAD_DIM}"
    elif spec.stored not in _STORED:
        reason = f"it reads no {spec.stored}"
    elif spec.stored == torch.float8_e4m3fn and device.type == "cuda" and not has_float8(device):
        reason = "the device knows no float8"
    else:
        return True
    _log.info("decode attention runs on torch's own operations: %s", reason)
    return False


def bytes_read(kv_lengths: Sequence[int], spec: AttentionSpec, group: int) -> int:
    """Bytes of keys, values and scales that one layer's decode rows see: what a call must read at the least.

    Args:
        kv_lengths: Of each request, its new token included.
        spec: The model's attention.
        group: Codes that share a scale; 0 = numbers are stored.
    """
    tokens = sum(length - spec.first_visible(length - 1) for length in kv_lengths if length)
    row_bytes = spec.head_dim * spec.stored.itemsize + (2 * -(-spec.head_dim // group) if group else 0)
    return tokens * 2 * spec.num_kv_heads * row_bytes
