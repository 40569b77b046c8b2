"""Reading tiles of keys and values, and attending to them; a split's tiles go through one pipelined loop.

Numbers are multiplied as what they are. Codes are multiplied as float16, which holds them exactly and their products with scales better than
bfloat16 does: two codes are read as one int16, go the way to tensor cores that a 16-bit number goes, and become two float16 in registers; so
dimensions of even and of odd number are multiplied apart. Numbers beyond 65504 in magnitude are cut off there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from compute_svc.kernels.triton_parts import dot, rounded


@triton.jit
def _pages_of(pages, tile, end, tokens, TILE: tl.constexpr, PAGE: tl.constexpr):
    """Entries of a request's row of the page table for tokens of a tile, by their numbers in it; zeros from `end`, its last token's successor, on."""
    entries = tile * (TILE // PAGE) + tokens // PAGE if TILE % PAGE == 0 else (tile * TILE + tokens) // PAGE
    return tl.load(pages + entries, mask=tile * TILE + tokens < end, other=0)


@triton.jit
def _slots_of(found, tile, tokens, TILE: tl.constexpr, PAGE: tl.constexpr, OFFSETS: tl.constexpr):
    """Slots of tokens of a tile, in the integers that offsets are computed in."""
    if TILE % PAGE == 0:
        return found.to(OFFSETS) * PAGE + tokens % PAGE
    else:
        return found.to(OFFSETS) * PAGE + (tile * TILE + tokens) % PAGE


@triton.jit
def _seen(tile, first, end, tokens, TILE: tl.constexpr, WINDOWED: tl.constexpr):
    """Which tokens of a tile are seen."""
    positions = tile * TILE + tokens
    if WINDOWED:
        return (positions >= first) & (positions < end)
    else:
        return positions < end


@triton.jit
def _rows_of(data, scales, slots, seen, D: tl.constexpr, PAD_D: tl.constexpr, CODE_GROUP: tl.constexpr, COMPUTE: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    """Numbers [tokens, PAD_D] of slots, zeros where a token is not seen."""
    dims = tl.arange(0, PAD_D)
    wanted = seen[:, None]
    if D != PAD_D:
        wanted = wanted & (dims < D)[None, :]
    numbers = tl.load(data + slots[:, None] * D + dims[None, :], mask=wanted, other=0.0)
    if CODE_GROUP > 0:
        GROUPS: tl.constexpr = (D + CODE_GROUP - 1) // CODE_GROUP
        several = tl.load(scales + slots[:, None] * GROUPS + dims[None, :] // CODE_GROUP, mask=wanted, other=0.0)
        numbers = numbers.to(tl.float32) * several.to(tl.float32)
    if numbers.dtype != COMPUTE:
        numbers = rounded(numbers.to(tl.float32), COMPUTE, INTERPRETED)
    return numbers


@triton.jit
def _pairs_of(data, slots, seen, D: tl.constexpr, PAD_D: tl.constexpr):
    """Codes of slots [parts, tokens], two and two as int16 [parts, tokens, PAD_D / 2], zeros where a token is not seen."""
    columns = tl.arange(0, PAD_D // 2)[None, None, :]
    wanted = seen[:, :, None]
    if D != PAD_D:
        wanted = wanted & (columns < D // 2)
    return tl.load(data.to(tl.pointer_type(tl.int16)) + slots[:, :, None] * (D // 2) + columns, mask=wanted, other=0)


@triton.jit
def _scales_of(scales, slots, seen, D: tl.constexpr, PAD_D: tl.constexpr, CODE_GROUP: tl.constexpr):
    """Float16 scales of slots [parts, tokens]: as many if a row has one, else [parts, tokens, PAD_D / CODE_GROUP]."""
    GROUPS: tl.constexpr = (D + CODE_GROUP - 1) // CODE_GROUP
    if GROUPS == 1:
        return tl.load(scales + slots, mask=seen, other=0.0)
    else:
        places = tl.arange(0, PAD_D // CODE_GROUP)[None, None, :]
        wanted = seen[:, :, None]
        if PAD_D // CODE_GROUP != GROUPS:
            wanted = wanted & (places < GROUPS)
        return tl.load(scales + slots[:, :, None] * GROUPS + places, mask=wanted, other=0.0)


@triton.jit
def _unpacked(pairs, HIGH: tl.constexpr, CODES: tl.constexpr, INTERPRETED: tl.constexpr):
    """One code of each pair, exactly, as float16; two pairs at a time, which stay next to each other."""
    if INTERPRETED:
        byte = (pairs >> 8 if HIGH else pairs & 0xFF).to(tl.int8)
        return byte.to(CODES, bitcast=True).to(tl.float32).to(tl.float16)
    elif tl.int8 == CODES:
        # A byte behind 0x64 is 1024 more than what it is without a sign, which is 128 more than the code if its sign is turned over.
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 bytes, offset;
            shr.b32 bytes, $1, 8;
            mov.b32 offset, 0x64806480;
            lop3.b32 $0, bytes, 0x00FF00FF, offset, 0x6A;
            sub.f16x2 $0, $0, offset;
            }"""
            if HIGH
            else """{
            .reg .b32 offset;
            mov.b32 offset, 0x64806480;
            lop3.b32 $0, $1, 0x00FF00FF, offset, 0x6A;
            sub.f16x2 $0, $0, offset;
            }""",
            "=r,r",
            [pairs],
            dtype=tl.float16,
            is_pure=True,
            pack=2,
        )
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 bytes;
            .reg .b16 both;
            prmt.b32 bytes, $1, 0, 0x4431;
            cvt.u16.u32 both, bytes;
            cvt.rn.f16x2.e4m3x2 $0, both;
            }"""
            if HIGH
            else """{
            .reg .b32 bytes;
            .reg .b16 both;
            prmt.b32 bytes, $1, 0, 0x4420;
            cvt.u16.u32 both, bytes;
            cvt.rn.f16x2.e4m3x2 $0, both;
            }""",
            "=r,r",
            [pairs],
            dtype=tl.float16,
            is_pure=True,
            pack=2,
        )


@triton.jit
def _decoded(pairs, several, HIGH: tl.constexpr, CODES: tl.constexpr, CODE_GROUP: tl.constexpr, ONE_SCALE: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    """One number of each pair, float16: the code times its scale of those of `_scales_of`."""
    codes = _unpacked(pairs, HIGH, CODES, INTERPRETED)
    # So small that the largest code becomes a float16.
    most = tl.full((1,) * len(several.shape), 515.5 if tl.int8 == CODES else 146.125, tl.float16)
    bounded = tl.minimum(several, most, propagate_nan=tl.PropagateNan.ALL)
    if ONE_SCALE:
        return codes * bounded[:, :, None]
    else:
        # Scales are reshaped, not codes: those keep to one layout from shared memory to tensor cores only if nothing but arithmetic is between.
        wide = tl.broadcast_to(bounded[:, :, :, None], (codes.shape[0], codes.shape[1], several.shape[2], CODE_GROUP // 2))
        return codes * tl.reshape(wide, codes.shape)


@triton.jit
def _weigh(products, seen, distances, slope, best, sums, score_scale, softcap, CAPPED: tl.constexpr):
    """One step of a softmax over products [..., heads, tokens] of a tile, of which a part may have seen nothing yet.

    Args:
        products: float32.
        seen, distances: [..., 1, tokens].
        slope: [heads, 1], or with as many axes as products; None = none.
        best: [..., heads], the largest score until here.
        sums: As products, of weights of all tiles at the same place.

    Returns:
        Weights as products, best, sums, and [..., heads, 1] by what all before shrink.
    """
    LAST: tl.constexpr = len(products.shape) - 1
    scores = products * score_scale
    if CAPPED:
        scores = softcap - 2.0 * softcap / (tl.exp2(tl.minimum(scores, 120.0)) + 1.0)
    if slope is not None:
        scores += slope * distances.to(tl.float32)
    scores = tl.where(seen, scores, -float("inf"))
    larger = tl.maximum(best, tl.max(scores, LAST))
    base = tl.where(larger == -float("inf"), 0.0, larger)
    shrunk = tl.expand_dims(tl.exp2(best - base), LAST)
    weights = tl.exp2(scores - tl.expand_dims(base, LAST))
    return weights, larger, sums * shrunk + weights, shrunk


@triton.jit
def attend_numbers(
    query,
    data,
    scales,
    pages,
    key_row,
    value_row,
    slope,
    tiles,
    seen_tokens,
    score_scale,
    softcap,
    D: tl.constexpr,
    PAD_D: tl.constexpr,
    PAGE: tl.constexpr,
    CODE_GROUP: tl.constexpr,
    TILE: tl.constexpr,
    OFFSETS: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    COMPUTE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Attends with a query [heads, PAD_D] of dtype COMPUTE to the tokens of some tiles.

    Slots of keys and of values begin key_row and value_row slots from the store's begin; tiles and seen_tokens are (begin, end) each.
    Returns the largest score [heads], the sum of weights [heads] and the values times their weights [heads, PAD_D], float32.
    """
    BLOCK: tl.constexpr = query.shape[0]
    GROUPS: tl.constexpr = (D + CODE_GROUP - 1) // CODE_GROUP if CODE_GROUP > 0 else 1
    slopes = None if slope is None else slope[:, None]
    begin, end = tiles
    first, length = seen_tokens
    keys_of, values_of, key_scales, value_scales = data + key_row * D, data + value_row * D, scales, scales
    if CODE_GROUP > 0:
        key_scales, value_scales = scales + key_row * GROUPS, scales + value_row * GROUPS
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    sums = tl.zeros((BLOCK, TILE), tl.float32)
    acc = tl.zeros((BLOCK, PAD_D), tl.float32)
    # Pages are looked up a round ahead, so that loads of keys and values wait for no other load and the compiler starts them early.
    tokens = tl.arange(0, TILE)
    found = _pages_of(pages, begin, length, tokens, TILE, PAGE)
    for tile in range(begin, end):
        seen = _seen(tile, first, length, tokens, TILE, WINDOWED)
        slots = _slots_of(found, tile, tokens, TILE, PAGE, OFFSETS)
        found = _pages_of(pages, tile + 1, length, tokens, TILE, PAGE)
        distances = tile * TILE + tokens - (length - 1)
        keys = _rows_of(keys_of, key_scales, slots, seen, D, PAD_D, CODE_GROUP, COMPUTE, INTERPRETED)
        products = dot(query, tl.trans(keys), tl.zeros((BLOCK, TILE), tl.float32), INTERPRETED)
        weights, best, sums, shrunk = _weigh(products, seen[None, :], distances[None, :], slopes, best, sums, score_scale, softcap, CAPPED)
        values = _rows_of(values_of, value_scales, slots, seen, D, PAD_D, CODE_GROUP, COMPUTE, INTERPRETED)
        acc = dot(rounded(weights, COMPUTE, INTERPRETED), values, acc * shrunk, INTERPRETED)
    return best, tl.sum(sums, 1), acc


@triton.jit
def attend_codes(
    queries, data, scales, pages, key_row, value_row, slope, tiles, seen_tokens, score_scale, softcap,
    D: tl.constexpr, PAD_D: tl.constexpr, PAGE: tl.constexpr, CODE_GROUP: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
    OFFSETS: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """As `attend_numbers` over codes; queries are (even dimensions, odd ones) of a query, [heads, PAD_D / 2] float16 each.

    A tile has PARTS parts, one for each warp, each with a softmax of its own: warps wait for each other for what is loaded alone.
    """
    CODES: tl.constexpr = data.dtype.element_ty
    GROUPS: tl.constexpr = (D + CODE_GROUP - 1) // CODE_GROUP
    ONE: tl.constexpr = GROUPS == 1
    BLOCK: tl.constexpr = queries[0].shape[0]
    TOKENS: tl.constexpr = TILE // PARTS
    even_query = tl.broadcast_to(queries[0][None, :, :], (PARTS, BLOCK, PAD_D // 2))
    odd_query = tl.broadcast_to(queries[1][None, :, :], (PARTS, BLOCK, PAD_D // 2))
    slopes = None if slope is None else slope[None, :, None]
    begin, end = tiles
    first, length = seen_tokens
    keys_of, values_of = data + key_row * D, data + value_row * D
    key_scales_of, value_scales_of = scales + key_row * GROUPS, scales + value_row * GROUPS
    best = tl.full((PARTS, BLOCK), -float("inf"), tl.float32)
    sums = tl.zeros((PARTS, BLOCK, TOKENS), tl.float32)
    even_acc, odd_acc = tl.zeros((PARTS, BLOCK, PAD_D // 2), tl.float32), tl.zeros((PARTS, BLOCK, PAD_D // 2), tl.float32)
    tokens = tl.arange(0, PARTS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
    # Pages and scales are loaded a round ahead, so that no load in the loop waits for another and the compiler starts those of codes early.
    found = _pages_of(pages, begin, length, tokens, TILE, PAGE)
    next_found = _pages_of(pages, begin + 1, length, tokens, TILE, PAGE)
    slots, seen = _slots_of(found, begin, tokens, TILE, PAGE, OFFSETS), _seen(begin, first, length, tokens, TILE, WINDOWED)
    key_scales = _scales_of(key_scales_of, slots, seen, D, PAD_D, CODE_GROUP)
    value_scales = _scales_of(value_scales_of, slots, seen, D, PAD_D, CODE_GROUP)
    for tile in range(begin, end):
        seen = _seen(tile, first, length, tokens, TILE, WINDOWED)
        slots = _slots_of(found, tile, tokens, TILE, PAGE, OFFSETS)
        found = _pages_of(pages, tile + 1, length, tokens, TILE, PAGE)
        distances = tile * TILE + tokens - (length - 1)
        pairs = _pairs_of(keys_of, slots, seen, D, PAD_D)
        if ONE:
            # Scaled where there are fewer numbers.
            even, odd = _unpacked(pairs, False, CODES, INTERPRETED), _unpacked(pairs, True, CODES, INTERPRETED)
        else:
            even = _decoded(pairs, key_scales, False, CODES, CODE_GROUP, ONE, INTERPRETED)
            odd = _decoded(pairs, key_scales, True, CODES, CODE_GROUP, ONE, INTERPRETED)
        products = dot(even_query, tl.permute(even, (0, 2, 1)), tl.zeros((PARTS, BLOCK, TOKENS), tl.float32), INTERPRETED)
        products = dot(odd_query, tl.permute(odd, (0, 2, 1)), products, INTERPRETED)
        if ONE:
            products *= key_scales.to(tl.float32)[:, None, :]
        weights, best, sums, shrunk = _weigh(
            products, seen[:, None, :], distances[:, None, :], slopes, best, sums, score_scale, softcap, CAPPED
        )
        pairs = _pairs_of(values_of, slots, seen, D, PAD_D)
        even = _decoded(pairs, value_scales, False, CODES, CODE_GROUP, ONE, INTERPRETED)
        odd = _decoded(pairs, value_scales, True, CODES, CODE_GROUP, ONE, INTERPRETED)
        weights = weights.to(tl.float16)
        even_acc, odd_acc = dot(weights, even, even_acc * shrunk, INTERPRETED), dot(weights, odd, odd_acc * shrunk, INTERPRETED)
        slots, seen = _slots_of(next_found, tile + 1, tokens, TILE, PAGE, OFFSETS), _seen(tile + 1, first, length, tokens, TILE, WINDOWED)
        key_scales = _scales_of(key_scales_of, slots, seen, D, PAD_D, CODE_GROUP)
        value_scales = _scales_of(value_scales_of, slots, seen, D, PAD_D, CODE_GROUP)
        next_found = _pages_of(pages, tile + 2, length, tokens, TILE, PAGE)
    largest = tl.max(best, 0)
    shares = tl.exp2(best - tl.where(largest == -float("inf"), 0.0, largest)[None, :])
    total = tl.sum(tl.sum(sums, 2) * shares, 0)
    even_acc, odd_acc = tl.sum(even_acc * shares[:, :, None], 0), tl.sum(odd_acc * shares[:, :, None], 0)
    return largest, total, tl.reshape(tl.join(even_acc, odd_acc), (BLOCK, PAD_D))
