"""A program attends with some consecutive queries of a request, for all heads of one key head, to the tokens they see.

Rows of a program are queries times heads, so that few queries fill a tile, too, and keys are read once for all heads that share them. Its
tiles of tokens up to the causal border go through an online softmax in float32, in powers of two; only those at the borders are masked.
Tiles and pages have sizes of their own; each token's page is looked up. Where a plan splits the tokens of a block, the program that ends last
adds up what all have of it (kernels/attention/splits).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from compute_svc.kernels.attention.splits.triton_kernel import add_splits, finish, hand_in
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.prefill_attention.splits import SPLIT_NUMBERS
from compute_svc.kernels.prefill_attention.triton_plan import Tiles, TritonPrefillPlan, pack_of, tiles_for
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, dot, rounded

_LOG2_E = 1.4426950408889634
LOG2_E = tl.constexpr(_LOG2_E)

# The largest score of a row that has seen nothing yet: finite, so that such a row has no infinity less infinity. A finite score for what is
# hidden would not do: multiplied and subtracted in one rounding, it leaves its own product's error, which no power of two holds.
NOTHING_SEEN = tl.constexpr(-1e30)

# Numbers of partial results that a warp adds up at a time, and so reads at a time: half of its registers, and all of them where rows are few,
# splits many, and programs have a processor for themselves anyway.
_SUMMED_BY_WARP, _SUMMED_OF_FEW_ROWS = 1 << 11, 1 << 12


@triton.jit
def _load_rows(
    data, scales, slots, D: tl.constexpr, BLOCK_D: tl.constexpr, CODES: tl.constexpr, COMPUTE: tl.constexpr, INTERPRETED: tl.constexpr
):
    """[tokens, BLOCK_D] of COMPUTE: keys or values of one head in some slots, zeros from D on."""
    places = tl.arange(0, BLOCK_D)
    addresses = data + slots[:, None] * D + places[None, :]
    stored = tl.load(addresses) if D == BLOCK_D else tl.load(addresses, mask=(places < D)[None, :], other=0.0)
    if CODES != 0:
        return _decoded(stored, scales, slots, D, CODES, COMPUTE, INTERPRETED)
    elif stored.dtype == COMPUTE:
        return stored
    else:
        return stored.to(tl.float32)


@triton.jit
def _decoded(codes, scales, slots, D: tl.constexpr, CODES: tl.constexpr, COMPUTE: tl.constexpr, INTERPRETED: tl.constexpr):
    """[tokens, BLOCK_D] of COMPUTE: numbers that codes in groups of CODES stand for, with their slots' scales."""
    BLOCK_D: tl.constexpr = codes.shape[1]
    PER_ROW: tl.constexpr = (D + CODES - 1) // CODES
    if codes.dtype == tl.int8:
        # Exact, and cheaper than a conversion, of which a multiprocessor does an eighth as many.
        numbers = (codes.to(tl.int32) + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0
    else:
        numbers = codes.to(tl.float32)
    if BLOCK_D % CODES == 0:
        GROUPS: tl.constexpr = BLOCK_D // CODES
        groups = tl.arange(0, GROUPS)
        addresses = scales + slots[:, None] * PER_ROW + groups[None, :]
        factors = tl.load(addresses) if PER_ROW == GROUPS else tl.load(addresses, mask=(groups < PER_ROW)[None, :], other=0.0)
        grouped = tl.reshape(numbers, (codes.shape[0], GROUPS, CODES)) * factors.to(tl.float32)[:, :, None]
        numbers = tl.reshape(grouped, (codes.shape[0], BLOCK_D))
    else:
        places = tl.arange(0, BLOCK_D)
        factors = tl.load(scales + slots[:, None] * PER_ROW + (places // CODES)[None, :], mask=(places < D)[None, :], other=0.0)
        numbers *= factors.to(tl.float32)
    return rounded(numbers, COMPUTE, INTERPRETED)


@triton.jit
def _attend(
    queries, positions, slopes, acc, largest, total, tile, first, end, is_whole, key_data, value_data, key_scales, value_scales, pages,
    scale, PAGE: tl.constexpr, D: tl.constexpr, CODES: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, TOKENS: tl.constexpr,
    SLOT: tl.constexpr, COMPUTE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """acc [rows, BLOCK_D], largest [rows] and total [rows], with one tile of tokens more; is_whole if every row sees all of it.

    Scores are exponents of 2. Of the tile, tokens in [first, end) are read. SLOT is an integer that holds D times a slot.
    """
    BLOCK_D: tl.constexpr = queries.shape[1]
    tokens = tile * TOKENS + tl.arange(0, TOKENS)
    distances = tokens[None, :] - positions[:, None]
    # Others repeat those at the ends, and are hidden.
    tokens = tl.minimum(tokens, end - 1) if WINDOW is None else tl.minimum(tl.maximum(tokens, first), end - 1)
    # Without a sign a division by a power of two is one shift.
    places = tokens.to(tl.uint32)
    page = tl.load(pages + tile // (PAGE // TOKENS)) if PAGE % TOKENS == 0 else tl.load(pages + (places // PAGE).to(tl.int32))
    slots = page.to(SLOT) * PAGE + (places % PAGE).to(SLOT)
    keys = _load_rows(key_data, key_scales, slots, D, BLOCK_D, CODES, COMPUTE, INTERPRETED)
    scores = dot(queries, tl.trans(keys), tl.zeros((queries.shape[0], TOKENS), dtype=tl.float32), INTERPRETED)
    if SOFTCAP is not None:
        # tanh by its definition, of magnitudes, whose powers do not overflow.
        small = tl.exp2(tl.abs(scores) * (scale * (-2.0 / SOFTCAP)))
        capped = (SOFTCAP * LOG2_E) * (1.0 - small) / (1.0 + small)
        scores = tl.where(scores < 0.0, -capped, capped)
        scale = 1.0
    if slopes is not None:
        scores = scores * scale + slopes[:, None] * distances.to(tl.float32)
        scale = 1.0
    if not is_whole:
        seen = distances <= 0
        if WINDOW is not None:
            seen = seen & (distances > -WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    # The scale is positive: what is largest before it is largest after it, and one operation scales and subtracts.
    larger = tl.maximum(largest, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - larger[:, None])
    shrink = tl.exp2(largest - larger)
    total = total * shrink + tl.sum(weights, 1)
    values = _load_rows(value_data, value_scales, slots, D, BLOCK_D, CODES, COMPUTE, INTERPRETED)
    acc = dot(rounded(weights, COMPUTE, INTERPRETED), values, acc * shrink[:, None], INTERPRETED)
    return acc, larger, total


@triton.jit
def _part(blocks, QUERIES: tl.constexpr, PARTS: tl.constexpr):
    """What this program computes, up to QUERIES queries of a block: request, first row, first position and the one behind the last."""
    block = blocks + 4 * (tl.program_id(0) // PARTS)
    skipped = tl.program_id(0) % PARTS * QUERIES
    start = tl.load(block + 3).to(tl.int32) + skipped
    num_queries = tl.load(block + 2).to(tl.int32) - skipped
    return tl.load(block), tl.load(block + 1) + skipped, start, start + tl.minimum(num_queries, QUERIES)


@triton.jit
def _tiles(start, end, WINDOW: tl.constexpr, TOKENS: tl.constexpr):
    """First token that queries at [start, end) see, tiles [lowest, highest) that hold what any of them sees, [whole_from, whole_to) that all see whole."""
    first, whole_first = 0, 0
    if WINDOW is not None:
        first, whole_first = tl.maximum(start + 1 - WINDOW, 0), tl.maximum(end - WINDOW, 0)
    whole_from = tl.cdiv(whole_first, TOKENS)
    return first, first // TOKENS, tl.cdiv(end, TOKENS), whole_from, tl.maximum((start + 1) // TOKENS, whole_from)


@triton.jit
def _add_up(
    partials, stats, sink_logits, out, first_place, num_queries, count, present, first_head, out_stride, NUM_HEADS: tl.constexpr,
    PACK: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr, SUMMED: tl.constexpr,
    OUT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Stores what all splits together have of a program's queries, present of them, PIECE rows at a time; out begins at their first row.

    Of the first split their places begin at first_place, and each split has num_queries of them, of NUM_HEADS each.
    """
    dims = tl.arange(0, BLOCK_D)
    for start in range(0, ROWS, PIECE):
        rows = start + tl.arange(0, PIECE)
        query, head, here = rows // PACK, first_head + rows % PACK, rows // PACK < present
        offsets = query * NUM_HEADS + head
        best, total, acc = add_splits(partials, stats, first_place, num_queries, count, offsets, here, NUM_HEADS, D, BLOCK_D, SUMMED)
        finish(best, total, acc, sink_logits, head, here, out + (query * out_stride + head * D)[:, None], dims, D, OUT, INTERPRETED)


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["blocks", "splits", "page_table"])
def prefill_attention_kernel(
    q, data, scales, out, blocks, splits, page_table, slopes, sink_logits, partials, stats, counters,
    q_stride, head_stride, out_stride, table_stride, num_slots, scale,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr, QUERIES: tl.constexpr, PARTS: tl.constexpr,
    PAGE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, CODES: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, SLOT: tl.constexpr, COMPUTE: tl.constexpr, OUT: tl.constexpr, NUMBERS: tl.constexpr,
    PIECE: tl.constexpr, SUMMED: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """A grid of blocks times PARTS, heads divided by PACK.

    q [T, heads, D] and out [T, heads * D] with their strides; data [2 * NUM_KV_HEADS, num_slots, D]; scales the same, of groups of CODES,
    or None; blocks [B, 4]; slopes and sink_logits [heads] or None; scale with log2(e). splits [B, NUMBERS], partials, stats and counters as
    in `Splits`, or None; PIECE rows and SUMMED splits are added up at a time.
    """
    request, first_row, start, end = _part(blocks, QUERIES, PARTS)
    if end <= start:
        return
    rows = tl.arange(0, ROWS)
    # Rows without a query repeat the last one and are not stored.
    query = tl.minimum(rows // PACK, end - start - 1)
    wanted = rows // PACK < end - start
    head = tl.program_id(1) * PACK + rows % PACK
    places = tl.arange(0, BLOCK_D)
    mask = wanted[:, None] & (places < D)[None, :]
    q_rows = (first_row + query) * q_stride + head * head_stride
    queries = tl.load(q + q_rows[:, None] + places[None, :], mask=mask, other=0.0)
    if queries.dtype != COMPUTE:
        queries = queries.to(tl.float32)
    head_slopes = None
    if slopes is not None:
        head_slopes = tl.load(slopes + head).to(tl.float32) * LOG2_E

    kv_head = (tl.program_id(1) * PACK // GROUP).to(tl.int64)
    key_slots, value_slots = kv_head * num_slots, (kv_head + NUM_KV_HEADS) * num_slots
    key_scales, value_scales = None, None
    if CODES != 0:
        PER_ROW: tl.constexpr = (D + CODES - 1) // CODES
        key_scales, value_scales = scales + key_slots * PER_ROW, scales + value_slots * PER_ROW
    key_data, value_data = data + key_slots * D, data + value_slots * D
    pages = page_table + request * table_stride

    first, lowest, highest, whole_from, whole_to = _tiles(start, end, WINDOW, TOKENS)
    count = 1
    if splits is not None:
        split = splits + tl.program_id(0) // PARTS * NUMBERS
        lowest = tl.maximum(lowest, tl.load(split).to(tl.int32) // TOKENS)
        highest = tl.minimum(highest, tl.load(split + 1).to(tl.int32) // TOKENS)
        count = tl.load(split + 4).to(tl.int32)
    acc = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
    largest = tl.full((ROWS,), NOTHING_SEEN, dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    positions = start + query
    for tile in range(lowest, highest):
        is_whole = tile < whole_to if WINDOW is None else (tile < whole_to) & (tile >= whole_from)
        acc, largest, total = _attend(
            queries, positions, head_slopes, acc, largest, total, tile, first, end, is_whole, key_data, value_data, key_scales,
            value_scales, pages, scale, PAGE, D, CODES, WINDOW, SOFTCAP, TOKENS, SLOT, COMPUTE, INTERPRETED,
        )  # fmt: skip
    if count == 1:
        out_rows = (first_row + query) * out_stride + head * D
        finish(largest, total, acc, sink_logits, head, wanted, out + out_rows[:, None], places, D, OUT, INTERPRETED)
    elif splits is not None:
        NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
        skipped = tl.program_id(0) % PARTS * QUERIES
        num_queries = tl.load(blocks + 4 * (tl.program_id(0) // PARTS) + 2).to(tl.int32)
        first_place = tl.load(split + 2).to(tl.int32) + skipped
        own_places = (first_place + tl.load(split + 3).to(tl.int32) * num_queries + query) * NUM_HEADS + head
        counter = counters + first_place * NUM_HEADS + tl.program_id(1)
        if hand_in(largest, total, acc, partials, stats, counter, count, own_places, wanted, places, D):
            _add_up(
                partials, stats, sink_logits, out + first_row * out_stride, first_place, num_queries, count, end - start,
                tl.program_id(1) * PACK, out_stride, NUM_HEADS, PACK, D, BLOCK_D, ROWS, PIECE, SUMMED, OUT, INTERPRETED,
            )  # fmt: skip


def prefill_attention(
    q: torch.Tensor, kv: KvLayer, plan: TritonPrefillPlan, out: torch.Tensor, sink_logits: torch.Tensor | None = None
) -> None:
    """See the public function. Queries and KV are multiplied in their own dtype if that is one, codes in the queries'; else in float32."""
    spec = plan.spec
    if q.stride(2) != 1:
        q = q.contiguous()
    num_blocks, num_slots = len(plan.blocks), spec.num_pages * spec.page_size_tokens
    if num_blocks == 0:
        return
    coded = kv.scales is not None
    compute = q.dtype if coded or kv.data.dtype == q.dtype else torch.float32
    block_d = max(triton.next_power_of_2(spec.head_dim), 16)
    tiles = plan.tiles or tiles_for(plan.rows, spec.head_dim, compute, coded or plan.slopes is not None, plan.device)
    pack = pack_of(tiles.rows, spec)
    queries = max(tiles.rows // pack, 1)
    parts = math.ceil(plan.block_tokens / queries)
    slot = tl.int32 if num_slots * spec.head_dim < 2**31 else tl.int64
    splits = plan.splits
    shared = (None,) * 3 if splits is None else (splits.partials, splits.stats, splits.counters)
    piece, summed = summed_of(tiles, block_d)
    prefill_attention_kernel[(num_blocks * parts, spec.num_heads // pack)](
        q, kv.data, kv.scales, out, plan.blocks, None if splits is None else splits.items, plan.page_table, plan.slopes, sink_logits, *shared,
        q.stride(0), q.stride(1), out.stride(0), plan.page_table.stride(0), num_slots, spec.scale * _LOG2_E,
        NUM_KV_HEADS=spec.num_kv_heads, GROUP=spec.group_size, PACK=pack, QUERIES=queries, PARTS=parts,
        PAGE=spec.page_size_tokens, D=spec.head_dim, BLOCK_D=block_d, CODES=kv.group, WINDOW=spec.window, SOFTCAP=spec.softcap,
        ROWS=tiles.rows, TOKENS=tiles.tokens, SLOT=slot, COMPUTE=TL_DTYPES[compute], OUT=TL_DTYPES[q.dtype],
        NUMBERS=SPLIT_NUMBERS, PIECE=piece, SUMMED=summed, INTERPRETED=INTERPRETED,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip


def summed_of(tiles: Tiles, block_d: int) -> tuple[int, int]:
    """How many rows, and of how many splits, a program adds up at a time."""
    few = tiles.rows <= 16 and tiles.num_stages > 1
    numbers = tiles.num_warps * (_SUMMED_OF_FEW_ROWS if few else _SUMMED_BY_WARP) // block_d
    piece = min(tiles.rows, numbers // 2)
    return piece, numbers // piece
