"""Flash decoding: programs share requests by splits of their tokens, and the last to end adds the splits up, in order.

A work item is a split of one request; a program takes one for a block of query heads of one key head. Which items there are is derived on the
device from lengths there, once for all layers, so that a recorded launch is right for whatever lengths come later. Scores, softmax and sums are
float32, with powers of two; weights are rounded to the dtype that is multiplied.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from compute_svc.kernels.attention_spec import AttentionSpec
from compute_svc.kernels.decode_attention.triton_plan import (
    BLOCK_HEADS,
    ITEM_NUMBERS,
    TritonDecodePlan,
    head_blocks,
    padded,
    tile_shape,
)
from compute_svc.kernels.kv_layer import KvLayer
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, dot, rounded

_LOG2_E = math.log2(math.e)

_LOG2_E_IN_KERNEL = tl.constexpr(_LOG2_E)

# Numbers of partial results that are added up at a time.
_SUMMED_AT_ONCE = 1 << 14


@triton.jit
def _pages_of(pages, positions, first, length, PAGE: tl.constexpr):
    """Entries of a request's row of the page table, [tokens] int64."""
    return tl.load(pages + positions // PAGE, mask=(positions >= first) & (positions < length), other=0)


@triton.jit
def _scales_of(scales, slots, seen, D: tl.constexpr, PAD_D: tl.constexpr, CODE_GROUP: tl.constexpr):
    """Float16 scales of slots, as `_rows_of` wants them: [tokens] if a row has one, [tokens, PAD_D / CODE_GROUP], or else one for each number."""
    GROUPS: tl.constexpr = (D + CODE_GROUP - 1) // CODE_GROUP
    if GROUPS == 1:
        found = tl.load(scales + slots, mask=seen, other=0.0)
    elif PAD_D % CODE_GROUP == 0:
        places = tl.arange(0, PAD_D // CODE_GROUP)
        found = tl.load(scales + slots[:, None] * GROUPS + places[None, :], mask=seen[:, None] & (places < GROUPS)[None, :], other=0.0)
    else:
        dims = tl.arange(0, PAD_D)
        found = tl.load(scales + slots[:, None] * GROUPS + dims[None, :] // CODE_GROUP, mask=seen[:, None] & (dims < D)[None, :], other=0.0)
    return found


@triton.jit
def _rows_of(
    data,
    slots,
    seen,
    several,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    CODE_GROUP: tl.constexpr,
    COMPUTE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Numbers [tokens, PAD_D] of slots, zeros where a token is not seen; codes that have one scale for a row are left as they are."""
    dims = tl.arange(0, PAD_D)
    wanted = seen[:, None]
    if D != PAD_D:
        wanted = wanted & (dims < D)[None, :]
    numbers = tl.load(data + slots[:, None] * D + dims[None, :], mask=wanted, other=0.0)
    if CODE_GROUP > 0 and CODE_GROUP < D:
        if PAD_D % CODE_GROUP == 0:
            # Each scale is read once, and broadcast in registers.
            split = tl.reshape(numbers.to(tl.float32), (slots.shape[0], PAD_D // CODE_GROUP, CODE_GROUP))
            numbers = tl.reshape(split * several.to(tl.float32)[:, :, None], (slots.shape[0], PAD_D))
        else:
            numbers = numbers.to(tl.float32) * several.to(tl.float32)
    if numbers.dtype != COMPUTE:
        numbers = rounded(numbers.to(tl.float32), COMPUTE, INTERPRETED)
    return numbers


@triton.jit
def _finish(best, total, acc, sink_logits, heads, here, out, dims, D: tl.constexpr, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """Stores acc [heads, PAD_D] divided by total [heads], the sum of weights of which `best` is the largest score; nothing seen gives zeros."""
    if sink_logits is not None:
        sink = tl.load(sink_logits + heads, mask=here, other=0.0).to(tl.float32) * _LOG2_E_IN_KERNEL
        largest = tl.maximum(best, sink)
        shrunk = tl.exp2(best - largest)
        total = total * shrunk + tl.exp2(sink - largest)
        acc = acc * shrunk[:, None]
    answer = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + heads[:, None] * D + dims[None, :], rounded(answer, DTYPE, INTERPRETED), mask=here[:, None] & (dims < D)[None, :])


@triton.jit
def _sum_splits(
    partials, stats, first_item, count, heads, here, NUM_HEADS: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr, SPLITS: tl.constexpr
):
    """Largest score, sum of weights and weighted values of all splits of a request, [heads], [heads] and [heads, PAD_D]."""
    dims = tl.arange(0, PAD_D)
    best = tl.full(heads.shape, -float("inf"), tl.float32)
    total = tl.zeros(heads.shape, tl.float32)
    acc = tl.zeros((heads.shape[0], PAD_D), tl.float32)
    for start in range(0, count, SPLITS):
        splits = start + tl.arange(0, SPLITS)
        rows = (first_item + splits)[:, None] * NUM_HEADS + heads[None, :]
        ours = (splits < count)[:, None] & here[None, :]
        # Not from a cache of this processor: others have written them meanwhile.
        parts = tl.load(
            partials + rows[:, :, None] * D + dims[None, None, :],
            mask=ours[:, :, None] & (dims < D)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        scores = tl.load(stats + rows * 2, mask=ours, other=0.0, cache_modifier=".cg")
        sums = tl.load(stats + rows * 2 + 1, mask=ours, other=0.0, cache_modifier=".cg")
        scores = tl.where((splits < count)[:, None], scores, -float("inf"))
        larger = tl.maximum(best, tl.max(scores, 0))
        shrunk = tl.exp2(best - larger)
        weights = tl.exp2(scores - larger[None, :])
        total = total * shrunk + tl.sum(sums * weights, 0)
        acc = acc * shrunk[:, None] + tl.sum(parts * weights[:, :, None], 0)
        best = larger
    return best, total, acc


@triton.jit
def _scored(products, slope, distances, score_scale, softcap, CAPPED: tl.constexpr):
    """Scores as powers of two of products [heads, tokens]."""
    scores = products * score_scale
    if CAPPED:
        scores = softcap - 2.0 * softcap / (tl.exp2(scores) + 1.0)
    if slope is not None:
        scores += slope[:, None] * distances.to(tl.float32)[None, :]
    return scores


@triton.jit
def _attend(
    query,
    data,
    scales,
    pages,
    key_slots,
    value_slots,
    slope,
    begin,
    end,
    first,
    length,
    score_scale,
    softcap,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    PAGE: tl.constexpr,
    CODE_GROUP: tl.constexpr,
    TILE: tl.constexpr,
    CAPPED: tl.constexpr,
    COMPUTE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Of tiles from begin to end: largest score [heads], sum of weights [heads] and weighted values [heads, PAD_D] of a query [heads, PAD_D]."""
    BLOCK: tl.constexpr = query.shape[0]
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    acc = tl.zeros((BLOCK, PAD_D), tl.float32)
    # Pages and scales are loaded a round ahead, so that no load in the loop waits for another and the compiler starts those of keys and values early.
    positions = begin * TILE + tl.arange(0, TILE)
    found = _pages_of(pages, positions, first, length, PAGE)
    if CODE_GROUP > 0:
        seen = (positions >= first) & (positions < length)
        slots = found * PAGE + positions % PAGE
        key_scales = _scales_of(scales, key_slots + slots, seen, D, PAD_D, CODE_GROUP)
        value_scales = _scales_of(scales, value_slots + slots, seen, D, PAD_D, CODE_GROUP)
        next_found = _pages_of(pages, positions + TILE, first, length, PAGE)
    else:
        key_scales, value_scales = None, None
    for tile in range(begin, end):
        positions = tile * TILE + tl.arange(0, TILE)
        ahead = positions + TILE
        seen = (positions >= first) & (positions < length)
        slots = found * PAGE + positions % PAGE
        found = _pages_of(pages, ahead, first, length, PAGE)
        keys = _rows_of(data, key_slots + slots, seen, key_scales, D, PAD_D, CODE_GROUP, COMPUTE, INTERPRETED)
        products = dot(query, tl.trans(keys), tl.zeros((BLOCK, TILE), tl.float32), INTERPRETED)
        if CODE_GROUP >= D:
            products = products * key_scales.to(tl.float32)[None, :]
        scores = _scored(products, slope, positions - (length - 1), score_scale, softcap, CAPPED)
        scores = tl.where(seen[None, :], scores, -float("inf"))
        larger = tl.maximum(best, tl.max(scores, 1))
        shrunk = tl.exp2(best - larger)
        weights = tl.exp2(scores - larger[:, None])
        total = total * shrunk + tl.sum(weights, 1)
        values = _rows_of(data, value_slots + slots, seen, value_scales, D, PAD_D, CODE_GROUP, COMPUTE, INTERPRETED)
        if CODE_GROUP >= D:
            weights = weights * value_scales.to(tl.float32)[None, :]
        acc = dot(rounded(weights, COMPUTE, INTERPRETED), values, acc * shrunk[:, None], INTERPRETED)
        best = larger
        if CODE_GROUP > 0:
            next_seen = (ahead >= first) & (ahead < length)
            next_slots = next_found * PAGE + ahead % PAGE
            key_scales = _scales_of(scales, key_slots + next_slots, next_seen, D, PAD_D, CODE_GROUP)
            value_scales = _scales_of(scales, value_slots + next_slots, next_seen, D, PAD_D, CODE_GROUP)
            next_found = _pages_of(pages, ahead + TILE, first, length, PAGE)
    return best, total, acc


@triton.jit(do_not_specialize=["table_stride"])
def decode_kernel(
    q,
    data,
    scales,
    page_table,
    items,
    slopes,
    sink_logits,
    partials,
    stats,
    counters,
    out,
    q_row_stride,
    q_head_stride,
    out_stride,
    table_stride,
    num_slots,
    score_scale,
    softcap,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    PAGE: tl.constexpr,
    CODE_GROUP: tl.constexpr,
    NUMBERS: tl.constexpr,
    TILE: tl.constexpr,
    SUMMED: tl.constexpr,
    CAPPED: tl.constexpr,
    COMPUTE: tl.constexpr,
    DTYPE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
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
    query = tl.load(q + row * q_row_stride + heads[:, None] * q_head_stride + dims[None, :], mask=stored, other=0.0)
    if query.dtype != COMPUTE:
        query = query.to(tl.float32)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + heads, mask=here, other=0.0) * _LOG2_E_IN_KERNEL
    key_slots = kv_head.to(tl.int64) * num_slots
    value_slots = key_slots + num_slots.to(tl.int64) * NUM_KV_HEADS
    pages = page_table + row * table_stride
    best, total, acc = _attend(
        query,
        data,
        scales,
        pages,
        key_slots,
        value_slots,
        slope,
        begin,
        end,
        first,
        length,
        score_scale,
        softcap,
        D,
        PAD_D,
        PAGE,
        CODE_GROUP,
        TILE,
        CAPPED,
        COMPUTE,
        INTERPRETED,
    )
    row_out = out + row * out_stride
    if count == 1:
        _finish(best, total, acc, sink_logits, heads, here, row_out, dims, D, DTYPE, INTERPRETED)
    else:
        places = index * NUM_HEADS + heads
        tl.store(stats + places * 2, best, mask=here)
        tl.store(stats + places * 2 + 1, total, mask=here)
        tl.store(partials + places[:, None] * D + dims[None, :], acc, mask=stored)
        # All threads have stored before one of them counts this split as done.
        tl.debug_barrier()
        counter = counters + request * (NUM_KV_HEADS * HEAD_BLOCKS) + tl.program_id(0)
        if tl.atomic_add(counter, 1, sem="acq_rel") == count - 1:
            tl.store(counter, 0)
            few = head_block * BLOCK + tl.arange(0, ROWS)
            few_heads, inside = kv_head * GROUP_HEADS + few, few < GROUP_HEADS
            most, sums, added = _sum_splits(partials, stats, first_item, count, few_heads, inside, NUM_HEADS, D, PAD_D, SUMMED)
            _finish(most, sums, added, sink_logits, few_heads, inside, row_out, dims, D, DTYPE, INTERPRETED)


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


def launch_constants(spec: AttentionSpec, dtype: torch.dtype, code_group: int) -> dict[str, object]:
    """Constants of `decode_kernel` for a model, queries of a dtype and codes in groups (0 = numbers)."""
    width = padded(spec.head_dim)
    rows = min(BLOCK_HEADS, triton.next_power_of_2(spec.group_size))
    same = code_group > 0 or dtype == spec.stored
    return {
        "NUM_KV_HEADS": spec.num_kv_heads,
        "GROUP_HEADS": spec.group_size,
        "BLOCK": BLOCK_HEADS,
        "ROWS": rows,
        "D": spec.head_dim,
        "PAD_D": width,
        "PAGE": spec.page_size_tokens,
        "CODE_GROUP": code_group,
        "NUMBERS": ITEM_NUMBERS,
        "TILE": tile_shape(spec).tokens,
        "SUMMED": max(2, min(64, _SUMMED_AT_ONCE // (rows * width))),
        "CAPPED": spec.softcap is not None,
        "COMPUTE": TL_DTYPES[dtype] if same else tl.float32,
        "DTYPE": TL_DTYPES[dtype],
    }
