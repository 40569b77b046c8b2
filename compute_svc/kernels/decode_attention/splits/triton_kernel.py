"""One program derives the work items of all layers of a step from lengths that only the device knows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.kv_chunks import slopes_of
from compute_svc.kernels.decode_attention.triton_plan import (
    ITEM_NUMBERS,
    TritonDecodePlan,
    head_blocks,
    num_items,
    tile_shape,
    wanted_splits,
)

# Longer than any context, so that a window of it hides nothing.
_NO_WINDOW = 1 << 30

# Times a split may grow by a sixteenth until there are few enough.
_GROWTHS = tl.constexpr(8)

# What a program costs before its first tile, in tiles, and into how many parts splits are cut at most.
_START, _MOST_PARTS = tl.constexpr(2), tl.constexpr(4)


@triton.jit
def _in_even_waves(tiles, least, per, most, num_items):
    """A split's tiles, `per` or fewer, of more requests than are wanted at a time: those with which the last wave of programs is not nearly empty.

    tiles and least [requests]: of each request, and the fewest items that it has.
    """
    per = tl.minimum(per, tl.maximum(tl.max(tiles), 1))
    best, lowest = per, 1 << 30
    for parts in range(1, _MOST_PARTS + 1):
        shorter = (per + parts - 1) // parts
        count = tl.sum(tl.maximum((tiles + shorter - 1) // shorter, least))
        cost = (count + most - 1) // most * (shorter + _START)
        is_better = (cost < lowest) & (count <= num_items)
        best, lowest = tl.where(is_better, shorter, best), tl.where(is_better, cost, lowest)
    return best


@triton.jit(do_not_specialize=["num_requests", "num_items", "wanted", "most", "num_counters", "window", "split_tiles"])
def plan_kernel(
    lengths,
    items,
    counters,
    num_requests,
    num_items,
    wanted,
    most,
    num_counters,
    window,
    split_tiles,
    REQUESTS: tl.constexpr,
    TILE: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """Derives work items [num_items, NUMBERS] from lengths [num_requests], and zeros the counters; one program.

    An item: request (-1 = no work), first tile and end of the split, the request's length, the first token that it sees, the first of the
    request's items and how many it has. By load, splits are as long as to be `wanted` together, and longer if they would be more than `most`, or
    for more requests than that shorter, so that they fill whole waves of `most`; with split_tiles above 0 they begin at multiples of so many tiles. A request of no tokens has one item of no tiles.
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
        per = tl.maximum((tl.sum(tiles) + wanted - 1) // wanted, 1)
        for _ in range(_GROWTHS):
            too_many = (tl.sum((tiles + per - 1) // per) > most) & (num_requests <= wanted)
            per = tl.where(too_many, per + (per + 15) // 16, per)
        if num_requests > wanted:
            per = _in_even_waves(tiles, inside.to(tl.int32), per, most, num_items)
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
        *(kv_lengths, items, counters, requests, slots, *wanted_splits(spec, device), len(counters)),
        *(spec.window or _NO_WINDOW, 0 if fixed_split_tokens is None else fixed_split_tokens // tile.tokens),
        REQUESTS=max(32, triton.next_power_of_2(requests)),
        TILE=tile.tokens,
        NUMBERS=ITEM_NUMBERS,
        num_warps=min(8, triton.next_power_of_2(max(1, requests // 64))),
    )
    slopes = slopes_of(spec, device)
    pages = page_table if page_table.stride(1) == 1 else page_table.contiguous()
    return TritonDecodePlan(pages, spec, items, counters, partials, stats, slopes, fixed_split_tokens)
