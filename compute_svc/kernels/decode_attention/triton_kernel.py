"""Flash decoding: programs share requests by splits of their tokens, and the last to end adds the splits up, in order.

A work item is a split of one request; a program takes one for a block of query heads of one key head. Which items there are is derived on the
device from lengths there, once for all layers, so that a recorded launch is right for whatever lengths come later. Scores, softmax and sums are
float32, with powers of two; weights are rounded to the dtype that is multiplied (tiles/triton_kernel.py).
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.splits.triton_kernel import add_splits, finish, hand_in
from compute_svc.kernels.decode_attention.tiles.triton_kernel import attend_codes, attend_numbers
from compute_svc.kernels.decode_attention.triton_plan import (
    BLOCK_HEADS,
    ITEM_NUMBERS,
    TritonDecodePlan,
    head_blocks,
    padded,
    tile_shape,
)
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES

_LOG2_E = math.log2(math.e)

_LOG2_E_IN_KERNEL = tl.constexpr(_LOG2_E)

# Of wider heads the sums of each warp leave no registers for codes.
_WIDEST_PAIRS = 128

# Numbers of partial results that are added up at a time.
_SUMMED_AT_ONCE = 1 << 13


@triton.jit
def _as_half(query):
    """Float16, cut off where it would be infinite."""
    return tl.clamp(query.to(tl.float32), -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float16)


@triton.jit(do_not_specialize=["table_stride"])
def decode_kernel(
    q, data, scales, page_table, items, slopes, sink_logits, partials, stats, counters, out,
    q_row_stride, q_head_stride, out_stride, table_stride, num_slots, score_scale, softcap,
    NUM_KV_HEADS: tl.constexpr, GROUP_HEADS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr,
    PAGE: tl.constexpr, CODE_GROUP: tl.constexpr, PAIRS: tl.constexpr, NUMBERS: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr, OFFSETS: tl.constexpr,
    SUMMED: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, COMPUTE: tl.constexpr, DTYPE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """A grid of (kv_heads * head blocks, work items).

    q [R, num_heads, D], out [R, num_heads * D]; scores are score_scale times products, in powers of two; CAPPED ones are
    softcap * tanh(half of that, as a natural power). The others as in `TritonDecodePlan` and `KvLayer`.
    """
    HEAD_BLOCKS: tl.constexpr = (GROUP_HEADS + BLOCK - 1) // BLOCK
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP_HEADS
    index = tl.program_id(1)
    item = items + index * NUMBERS
    request = tl.load(item)
    if request < 0:
        return
    begin, end, length, first = tl.load(item + 1), tl.load(item + 2), tl.load(item + 3), tl.load(item + 4)
    first_item, count = tl.load(item + 5), tl.load(item + 6)
    kv_head = tl.program_id(0) // HEAD_BLOCKS
    head_block = tl.program_id(0) % HEAD_BLOCKS
    in_group = head_block * BLOCK + tl.arange(0, BLOCK)
    heads, here = kv_head * GROUP_HEADS + in_group, in_group < GROUP_HEADS
    dims = tl.arange(0, PAD_D)
    stored = here[:, None] & (dims < D)[None, :]
    row = request.to(tl.int64)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + heads, mask=here, other=0.0) * _LOG2_E_IN_KERNEL
    key_row = kv_head.to(tl.int64) * num_slots
    value_row = key_row + num_slots.to(tl.int64) * NUM_KV_HEADS
    pages = page_table + row * table_stride
    queries = q + row * q_row_stride + heads[:, None] * q_head_stride
    tiles, seen_tokens = (begin, end), (first, length)
    if PAIRS:
        even = 2 * tl.arange(0, PAD_D // 2)[None, :]
        wanted = here[:, None] & (even < D)
        query = _as_half(tl.load(queries + even, mask=wanted, other=0.0)), _as_half(tl.load(queries + even + 1, mask=wanted, other=0.0))
        best, total, acc = attend_codes(
            query, data, scales, pages, key_row, value_row, slope, tiles, seen_tokens, score_scale, softcap,
            D, PAD_D, PAGE, CODE_GROUP, TILE, PARTS, OFFSETS, WINDOWED, CAPPED, INTERPRETED,
        )  # fmt: skip
    else:
        query = tl.load(queries + dims[None, :], mask=stored, other=0.0)
        if query.dtype != COMPUTE:
            query = query.to(tl.float32)
        best, total, acc = attend_numbers(
            query, data, scales, pages, key_row, value_row, slope, tiles, seen_tokens, score_scale, softcap,
            D, PAD_D, PAGE, CODE_GROUP, TILE, OFFSETS, WINDOWED, CAPPED, COMPUTE, INTERPRETED,
        )  # fmt: skip
    row_out = out + row * out_stride
    if count == 1:
        finish(best, total, acc, sink_logits, heads, here, row_out + heads[:, None] * D, dims, D, DTYPE, INTERPRETED)
    else:
        counter = counters + request * (NUM_KV_HEADS * HEAD_BLOCKS) + tl.program_id(0)
        if hand_in(best, total, acc, partials, stats, counter, count, index * NUM_HEADS + heads, here, dims, D):
            few = head_block * BLOCK + tl.arange(0, ROWS)
            few_heads, inside = kv_head * GROUP_HEADS + few, few < GROUP_HEADS
            most, sums, added = add_splits(partials, stats, first_item, 1, count, few_heads, inside, NUM_HEADS, D, PAD_D, SUMMED)
            finish(most, sums, added, sink_logits, few_heads, inside, row_out + few_heads[:, None] * D, dims, D, DTYPE, INTERPRETED)


def decode_attention(
    q: torch.Tensor, kv: KvLayer, plan: TritonDecodePlan, out: torch.Tensor, sink_logits: torch.Tensor | None = None
) -> None:
    """See the public function; without sinks."""
    spec, tile = plan.spec, tile_shape(plan.spec)
    assert out.stride(1) == 1 and out.dtype == q.dtype, "as they were made"
    if q.stride(2) != 1:
        q = q.contiguous()
    score_scale, softcap = spec.scale * _LOG2_E, 0.0
    if spec.softcap is not None:
        score_scale, softcap = 2.0 * score_scale / spec.softcap, spec.softcap * _LOG2_E
    decode_kernel[(spec.num_kv_heads * head_blocks(spec), len(plan.items))](
        *(q, kv.data, kv.scales, plan.page_table, plan.items, plan.slopes, sink_logits, plan.partials, plan.stats, plan.counters, out),
        *(q.stride(0), q.stride(1), out.stride(0), plan.page_table.stride(0), spec.num_pages * spec.page_size_tokens),
        *(score_scale, softcap),
        **launch_constants(spec, q.dtype, kv.group if kv.scales is not None else 0),
        INTERPRETED=INTERPRETED,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


@cache
def launch_constants(spec: AttentionSpec, dtype: torch.dtype, code_group: int) -> dict[str, object]:
    """Constants of `decode_kernel` for a model, queries of a dtype and codes in groups (0 = numbers)."""
    width = padded(spec.head_dim)
    rows = min(BLOCK_HEADS, triton.next_power_of_2(spec.group_size))
    in_groups = code_group >= spec.head_dim or (code_group > 0 and code_group % 2 == 0 and width % code_group == 0)
    pairs = in_groups and dtype != torch.float32 and spec.head_dim % 2 == 0 and width <= _WIDEST_PAIRS
    compute = dtype if code_group or dtype == spec.stored else torch.float32
    return {
        "NUM_KV_HEADS": spec.num_kv_heads,
        "GROUP_HEADS": spec.group_size,
        "BLOCK": BLOCK_HEADS,
        "ROWS": rows,
        "D": spec.head_dim,
        "PAD_D": width,
        "PAGE": spec.page_size_tokens,
        "CODE_GROUP": code_group,
        "PAIRS": pairs,
        "NUMBERS": ITEM_NUMBERS,
        "TILE": tile_shape(spec).tokens,
        "PARTS": tile_shape(spec).warps,
        "OFFSETS": tl.int32 if spec.num_pages * spec.page_size_tokens * spec.head_dim < 1 << 31 else tl.int64,
        "SUMMED": max(2, min(32, _SUMMED_AT_ONCE // (rows * width))),
        "WINDOWED": spec.window is not None,
        "CAPPED": spec.softcap is not None,
        "COMPUTE": TL_DTYPES[compute],
        "DTYPE": TL_DTYPES[dtype],
    }
