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
    num_items,
    padded,
    split_target,
    tile_shape,
)
from compute_svc.kernels.kv_chunks import slopes_of
from compute_svc.kernels.kv_layer import KvLayer
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, dot, rounded

_LOG2_E = math.log2(math.e)

_LOG2_E_IN_KERNEL = tl.constexpr(_LOG2_E)

# Longer than any context, so that a window of it hides nothing.
_NO_WINDOW = 1 << 30

# Numbers of partial results that are added up at a time.
_SUMMED_AT_ONCE = 1 << 14

# Times a split may grow by a sixteenth until no more splits than wanted are left.
_GROWTHS = tl.constexpr(8)


@triton.jit(do_not_specialize=["num_requests", "num_items", "target", "num_counters", "window", "split_tiles"])
def plan_kernel(
    lengths,
    items,
    counters,
    num_requests,
    num_items,
    target,
    num_counters,
    window,
    split_tiles,
    REQUESTS: tl.constexpr,
    TILE: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """Derives work items [num_items, NUMBERS] from lengths [num_requests], and zeros the counters; one program.

    An item: request (-1 = no work), first tile and end of the split, the request's length, the first token that it sees, the first of the
    request's items and how many it has. By load, splits are as long as to be `target` together; with split_tiles above 0 they begin at multiples
    of so many tiles. A request of no tokens has one item of no tiles.
    """
    rows = tl.arange(0, REQUESTS)
    inside = rows < num_requests
    length = tl.load(lengths + rows, mask=inside, other=0).to(tl.int32)
    first = tl.maximum(length - window, 0)
    begin = first // TILE
    end = (length + TILE - 1) // TILE
    tiles = end - begin
    if split_tiles > 0:
        base = begin // split_tiles * split_tiles
        share = tl.zeros_like(tiles) + split_tiles
    else:
        per = tl.maximum((tl.sum(tiles) + target - 1) // target, 1)
        for _ in range(_GROWTHS):
            too_many = (tl.sum((tiles + per - 1) // per) > target) & (num_requests <= target)
            per = tl.where(too_many, per + (per + 15) // 16, per)
        base = begin
        count = tl.maximum((tiles + per - 1) // per, 1)
        share = tl.maximum((tiles + count - 1) // count, 1)
    count = tl.where(inside, tl.maximum((end - base + share - 1) // share, 1), 0)
    place = tl.cumsum(count, 0) - count
    for split in range(tl.max(count)):
        item = items + (place + split) * NUMBERS
        used = (split < count) & (place + split < num_items)
        tl.store(item, rows, mask=used)
        tl.store(item + 1, tl.maximum(base + split * share, begin), mask=used)
        tl.store(item + 2, tl.minimum(base + (split + 1) * share, end), mask=used)
        tl.store(item + 3, length, mask=used)
        tl.store(item + 4, first, mask=used)
        tl.store(item + 5, place, mask=used)
        tl.store(item + 6, count, mask=used)
    for start in range(tl.sum(count), num_items, REQUESTS):
        tl.store(items + (start + rows) * NUMBERS, -1, mask=start + rows < num_items)
    for start in range(0, num_counters, REQUESTS):
        tl.store(counters + start + rows, 0, mask=start + rows < num_counters)


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
    begin, end = tl.load(item + 1), tl.load(item + 2)
    length, first = tl.load(item + 3), tl.load(item + 4)
    first_item, count = tl.load(item + 5), tl.load(item + 6)
    kv_head = tl.program_id(0) // HEAD_BLOCKS
    in_group = tl.program_id(0) % HEAD_BLOCKS * BLOCK + tl.arange(0, BLOCK)
    heads, here = kv_head * GROUP_HEADS + in_group, in_group < GROUP_HEADS
    dims, tokens = tl.arange(0, PAD_D), tl.arange(0, TILE)
    row = request.to(tl.int64)
    query = tl.load(
        q + row * q_row_stride + heads[:, None] * q_head_stride + dims[None, :], mask=here[:, None] & (dims < D)[None, :], other=0.0
    )
    if query.dtype != COMPUTE:
        query = query.to(tl.float32)
    if slopes is not None:
        slope = tl.load(slopes + heads, mask=here, other=0.0) * _LOG2_E_IN_KERNEL
    key_slots = kv_head.to(tl.int64) * num_slots
    value_slots = (kv_head + NUM_KV_HEADS).to(tl.int64) * num_slots
    pages = page_table + row * table_stride
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    acc = tl.zeros((BLOCK, PAD_D), tl.float32)
    # Pages and scales are loaded a round ahead, so that no load in the loop waits for another and the compiler starts those of keys and values early.
    positions = begin * TILE + tokens
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
        positions = tile * TILE + tokens
        seen = (positions >= first) & (positions < length)
        slots = found * PAGE + positions % PAGE
        found = _pages_of(pages, positions + TILE, first, length, PAGE)
        keys = _rows_of(data, key_slots + slots, seen, key_scales, D, PAD_D, CODE_GROUP, COMPUTE, INTERPRETED)
        scores = dot(query, tl.trans(keys), tl.zeros((BLOCK, TILE), tl.float32), INTERPRETED)
        if CODE_GROUP >= D:
            scores = scores * key_scales.to(tl.float32)[None, :]
        scores = scores * score_scale
        if CAPPED:
            scores = softcap - 2.0 * softcap / (tl.exp2(scores) + 1.0)
        if slopes is not None:
            scores += slope[:, None] * (positions - (length - 1)).to(tl.float32)[None, :]
        scores = tl.where(seen[None, :], scores, -float("inf"))
        larger = tl.maximum(best, tl.max(scores, 1))
        shrunk = tl.exp2(best - larger)
        weights = tl.exp2(scores - larger[:, None])
        total = total * shrunk + tl.sum(weights, 1)
        values = _rows_of(data, value_slots + slots, seen, value_scales, D, PAD_D, CODE_GROUP, COMPUTE, INTERPRETED)
        if CODE_GROUP >= D:
            weights = weights * value_scales.to(tl.float32)[None, :]
        if CODE_GROUP > 0:
            ahead = positions + TILE
            next_seen = (ahead >= first) & (ahead < length)
            next_slots = next_found * PAGE + ahead % PAGE
            key_scales = _scales_of(scales, key_slots + next_slots, next_seen, D, PAD_D, CODE_GROUP)
            value_scales = _scales_of(scales, value_slots + next_slots, next_seen, D, PAD_D, CODE_GROUP)
            next_found = _pages_of(pages, ahead + TILE, first, length, PAGE)
        acc = dot(rounded(weights, COMPUTE, INTERPRETED), values, acc * shrunk[:, None], INTERPRETED)
        best = larger
    row_out = out + row * out_stride
    if count == 1:
        _finish(best, total, acc, sink_logits, heads, here, row_out, dims, D, DTYPE, INTERPRETED)
    else:
        places = index * NUM_HEADS + heads
        tl.store(stats + places * 2, best, mask=here)
        tl.store(stats + places * 2 + 1, total, mask=here)
        tl.store(partials + places[:, None] * D + dims[None, :], acc, mask=here[:, None] & (dims < D)[None, :])
        # All threads have stored before one of them counts this split as done.
        tl.debug_barrier()
        counter = counters + request * (NUM_KV_HEADS * HEAD_BLOCKS) + tl.program_id(0)
        if tl.atomic_add(counter, 1, sem="acq_rel") == count - 1:
            tl.store(counter, 0)
            few = tl.program_id(0) % HEAD_BLOCKS * BLOCK + tl.arange(0, ROWS)
            few_heads, inside = kv_head * GROUP_HEADS + few, few < GROUP_HEADS
            most, sums, added = _sum_splits(partials, stats, first_item, count, few_heads, inside, NUM_HEADS, D, PAD_D, SUMMED)
            _finish(most, sums, added, sink_logits, few_heads, inside, row_out, dims, D, DTYPE, INTERPRETED)


def plan_on_device(
    page_table: torch.Tensor, kv_lengths: torch.Tensor, max_kv_tokens: int, spec: AttentionSpec, fixed_split_tokens: int | None = None
) -> TritonDecodePlan:
    """See `plan_decode_on_device`."""
    device, requests = page_table.device, len(page_table)
    tile = tile_shape(spec)
    if fixed_split_tokens is not None and (fixed_split_tokens < 1 or fixed_split_tokens % tile.tokens):
        raise ValueError(f"fixed_split_tokens is {fixed_split_tokens}, it must be a multiple of {tile.tokens}")
    slots = num_items(requests, max_kv_tokens, spec, device, fixed_split_tokens)
    numbers = torch.empty((slots * ITEM_NUMBERS + requests * spec.num_kv_heads * head_blocks(spec),), dtype=torch.int32, device=device)
    items, counters = numbers[: slots * ITEM_NUMBERS].view(slots, ITEM_NUMBERS), numbers[slots * ITEM_NUMBERS :]
    partials = torch.empty((slots, spec.num_heads, spec.head_dim), dtype=torch.float32, device=device)
    stats = torch.empty((slots, spec.num_heads, 2), dtype=torch.float32, device=device)
    plan_kernel[(1,)](
        *(kv_lengths, items, counters, requests, slots, split_target(spec, device), len(counters)),
        *(spec.window or _NO_WINDOW, 0 if fixed_split_tokens is None else fixed_split_tokens // tile.tokens),
        REQUESTS=max(32, triton.next_power_of_2(requests)),
        TILE=tile.tokens,
        NUMBERS=ITEM_NUMBERS,
        num_warps=min(8, max(1, requests // 64)),
    )
    slopes = slopes_of(spec, device)
    pages = page_table if page_table.stride(1) == 1 else page_table.contiguous()
    return TritonDecodePlan(pages, spec, items, counters, partials, stats, slopes, fixed_split_tokens)


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
