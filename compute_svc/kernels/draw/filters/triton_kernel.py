"""Top-k and top-p without a sort: the lowest logit that they leave, and of its equals the highest id.

A program looks at one row, in three steps. Of the largest logits of all blocks it finds one that about as many blocks reach as ids may be left: at
least as many ids reach it, so that all that are left lie in these blocks. It lists their ids that do, the head. In the head it finds the border, by
halving the range of keys that rise with logits until one is left: what reaches a key is counted, or weighed in float64.

The specification sums weights in another order, so that its sums differ from these by 2e-11 of their total at most. Where a border is nearer to a
rank than `_MARGIN`, the row is not decided here; nor is one whose head does not hold all that may be left, or has more ids than there is room for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_LANES = tl.constexpr(16)
_BLOCKS = tl.constexpr(256)  # of a span
_NO_ID = tl.constexpr(0x7FFFFFFF)
_LOWEST = tl.constexpr(-0x80000000)
# The key of -inf.
_NOTHING = tl.constexpr(-0x7F800001)
# Room for ids of a head, and how many blocks it holds whatever is in them.
_HEAD = tl.constexpr(4096)
_FITTING_BLOCKS = tl.constexpr(256)
# Blocks that a head is taken from at most. Where no top_k says how many, it is a quarter of them: few ids of a block are among the likeliest.
_HEAD_BLOCKS = tl.constexpr(1024)
_MARGIN = tl.constexpr(1e-10)
_UNDECIDED = tl.constexpr(2)
# Of each row: the lowest logit, the highest id and whether they are not decided; then logits and ids of the head.
_LIMITS = tl.constexpr(16)
WORDS = 16 + 2 * 4096
_WORDS = tl.constexpr(WORDS)


@triton.jit
def _keys_of(values):
    """int32 that rise with float32; zeros of both signs are equal."""
    bits = tl.where(values == 0, 0.0, values).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _highest(keys, weights, goal, low, high):
    """The highest key that keys of a weight of `goal` or more reach together; the lowest, if there is none.

    Args:
        keys: [n] int32.
        weights: [n], not negative.
        low, high: The lowest and the highest key that counts.
    """
    while low < high:
        middle = ((low.to(tl.int64) + high + 1) >> 1).to(tl.int32)
        reach = keys >= middle
        if tl.sum(tl.where(reach, weights, 0), axis=0) >= goal:
            low = tl.min(tl.where(reach, keys, _NO_ID), axis=0)
        else:
            high = tl.max(tl.where(reach, _LOWEST, keys), axis=0)
    return low


@triton.jit
def _level(keys, wanted, low, high):
    """A key that `wanted` keys reach, or up to a quarter more where equals allow it."""
    while low < high:
        middle = ((low.to(tl.int64) + high + 1) >> 1).to(tl.int32)
        reach = keys >= middle
        count = tl.sum(reach.to(tl.int32), axis=0)
        if count >= wanted:
            low = tl.min(tl.where(reach, keys, _NO_ID), axis=0)
            high = tl.where(count <= wanted + (wanted >> 2), low, high)
        else:
            high = tl.max(tl.where(reach, _LOWEST, keys), axis=0)
    return low


@triton.jit
def _last_id(ids, chosen, count):
    """The highest of the `count` lowest ids that are chosen."""
    falling = tl.where(chosen, -ids, _LOWEST)
    low = tl.min(tl.where(chosen, falling, _NO_ID), axis=0)
    return -_highest(falling, chosen.to(tl.int32), count, low, tl.max(falling, axis=0))


@triton.jit
def _list_head(logits, width, blocks, count, head, level, CHUNK: tl.constexpr):
    """Lists the ids of some blocks whose keys reach `level`; returns how many they are, of which there may be no room for all.

    Args:
        logits: The row's.
        blocks: [count] int32, in memory.
        head: Where logits and ids go.
    """
    lanes = tl.arange(0, _LANES)[None, :]
    found = 0
    for start in range(0, count, CHUNK):
        each = start + tl.arange(0, CHUNK)
        listed = each < count
        block = tl.load(blocks + each, mask=listed, other=0)[:, None]
        ids = ((block >> 8) << 12) | (block & 255) | (lanes << 8)
        values = tl.load(logits + ids, mask=listed[:, None] & (ids < width), other=float("-inf")).to(tl.float32)
        ids, values = tl.reshape(ids, [CHUNK * _LANES]), tl.reshape(values, [CHUNK * _LANES])
        flat = (_keys_of(values) >= level).to(tl.int32)
        places = found + tl.cumsum(flat, axis=0) - flat
        fits = (flat > 0) & (places < _HEAD)
        tl.store(head + places, values.to(tl.int32, bitcast=True), mask=fits)
        tl.store(head + _HEAD + places, ids, mask=fits)
        found += tl.sum(flat, axis=0)
    return found


@triton.jit
def _keep_top_k(keys, ids, top_k):
    """The lowest key that is left, and the highest id of those that have it.

    Args:
        keys: [n], of top_k ids at least, `_NOTHING` elsewhere.
    """
    ones = (keys > _NOTHING).to(tl.int32)
    key = _highest(keys, ones, top_k, tl.min(tl.where(ones > 0, keys, _NO_ID), axis=0), tl.max(keys, axis=0))
    equals = keys == key
    left = top_k - tl.sum((keys > key).to(tl.int32), axis=0)
    last_id = left * 0 + _NO_ID
    if tl.sum(equals.to(tl.int32), axis=0) > left:
        last_id = _last_id(ids, equals, left)
    return key, last_id


@triton.jit
def _keep_top_p(keys, ids, weights, goal, margin):
    """As `_keep_top_k`; and whether the border is too near to a rank.

    Args:
        keys: [n], `_NOTHING` where nothing is left.
        weights: [n] float64, 0 where nothing is left; `goal` of them at least.
        goal: What those before the last one fall short of.
    """
    low = tl.min(tl.where(keys > _NOTHING, keys, _NO_ID), axis=0)
    key = _highest(keys, weights, goal, low, tl.max(keys, axis=0))
    equals = keys == key
    above = tl.sum(tl.where(keys > key, weights, 0.0), axis=0)
    weight = tl.max(tl.where(equals, weights, 0.0), axis=0)
    # So many of the equals, not rounded up yet.
    share = tl.where(weight > 0, tl.minimum((goal - above) / tl.where(weight > 0, weight, 1.0), 1e6), 0.0)
    nearest = (share + 0.5).to(tl.int32)
    # Nothing is before the first rank, in whatever order it is summed.
    is_near = (tl.abs(share - nearest.to(tl.float64)) * weight <= margin) & ((nearest > 0) | (above > 0))
    left = share.to(tl.int32)
    left += (left.to(tl.float64) < share).to(tl.int32)
    left = tl.maximum(left, 1)
    last_id = left * 0 + _NO_ID
    if tl.sum(equals.to(tl.int32), axis=0) > left:
        last_id = _last_id(ids, equals, left)
    return key, last_id, is_near | (weight <= 0)


@triton.jit
def _border(head, count, is_whole, best_score, temperature, top_k, top_p, total):
    """The lowest key that is left, the highest id of those that have it, and whether that is not decided.

    Args:
        head: Logits and ids, in memory.
        count: How many; there is room for all.
        is_whole: Whether no id is missing.
        top_k: 0 = all.
        total: The weights of all ids, where there is no top_k.
    """
    places = tl.arange(0, _HEAD)
    exist = places < count
    values = tl.load(head + places, mask=exist, other=-0x800000).to(tl.float32, bitcast=True)
    ids = tl.load(head + _HEAD + places, mask=exist, other=_NO_ID)
    keys = _keys_of(values)
    key, last_id, is_near = count * 0 + _NOTHING, count * 0 + _NO_ID, count < 0
    if (top_k > 0) & (count >= top_k):
        key, last_id = _keep_top_k(keys, ids, top_k)
        keys = tl.where((keys > key) | ((keys == key) & (ids <= last_id)), keys, _NOTHING)
    if top_p < 1:
        weights = tl.where(keys > _NOTHING, tl.exp(values.to(tl.float64) / temperature - best_score), 0.0)
        inside = tl.sum(weights, axis=0)
        total = tl.where(top_k > 0, inside, total)
        goal, margin = top_p * total, total * _MARGIN
        if is_whole | (top_k > 0) | (inside >= goal + margin):
            of_top_k, last_of_top_k = key, last_id
            key, last_id, is_near = _keep_top_p(keys, ids, weights, goal, margin)
            last_id = tl.where(key == of_top_k, tl.minimum(last_id, last_of_top_k), last_id)
        else:
            is_near = count >= 0
    return key, last_id, is_near


@triton.jit(do_not_specialize_on_alignment=["temperatures", "top_ks", "top_ps"])
def filter_kernel(
    logits, temperatures, top_ks, top_ps, work, masses, head, width, row_stride, work_stride, spans, SPANS: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """Finds what the filters leave of one row; a grid of rows.

    Args:
        logits: [rows, width], rows row_stride apart.
        temperatures, top_ks, top_ps: [rows] float64, int64 with 0 = all, float64 with 1 = all.
        work: As the draw's first kernel wrote it; the room for candidates is written.
        masses: [rows, spans] float64, as the same kernel wrote them.
        head: [rows, WORDS] int32. Written, of each row: the lowest logit that is left, the highest id of those that have it, and `_UNDECIDED` or 0.
    """
    row = tl.program_id(0).to(tl.int64)
    head += row * _WORDS
    work += row * work_stride
    temperature, top_p = tl.load(temperatures + row), tl.load(top_ps + row)
    top_k = tl.minimum(tl.load(top_ks + row), _NO_ID).to(tl.int32)
    numbers = tl.arange(0, SPANS)
    of_spans = tl.load(work + spans * 768 + numbers, mask=numbers < spans, other=-0x800000).to(tl.float32, bitcast=True)
    best = tl.max(of_spans, axis=0)
    key, last_id, state = top_k * 0 + _NOTHING, top_k * 0 + _NO_ID, top_k * 0
    # Of a greedy row no block is known.
    if (temperature > 0) & ((top_k > 0) | (top_p < 1)) & (best > float("-inf")) & (best < float("inf")):
        best_score = best.to(tl.float64) / temperature
        places = tl.arange(0, SPANS * 256)
        maxima = tl.load(work + spans * 256 + places, mask=places < spans * 256, other=-0x800000)
        keys = _keys_of(maxima.to(tl.float32, bitcast=True))
        exist = keys > _NOTHING
        num_blocks = tl.sum(exist.to(tl.int32), axis=0)
        wanted = tl.minimum(tl.where(top_k > 0, top_k, tl.maximum(num_blocks >> 2, _FITTING_BLOCKS)), _HEAD_BLOCKS)
        is_whole = num_blocks <= wanted
        level = top_k * 0 + (_NOTHING + 1)
        if not is_whole:
            level = _level(keys, wanted, tl.min(tl.where(exist, keys, _NO_ID), axis=0), tl.max(keys, axis=0))
        flat = (keys >= level).to(tl.int32)
        num_blocks = tl.sum(flat, axis=0)
        blocks = work + spans * 512
        tl.store(blocks + tl.cumsum(flat, axis=0) - flat, places, mask=flat > 0)
        # The list is read by other threads than wrote it.
        tl.debug_barrier()
        count = num_blocks
        if num_blocks <= _HEAD:
            count = _list_head(logits + row * row_stride, width, blocks, num_blocks, head + _LIMITS, level, CHUNK)
        tl.debug_barrier()
        state = top_k * 0 + _UNDECIDED
        if (count <= _HEAD) & (is_whole | (top_k <= _HEAD_BLOCKS)):
            in_spans = tl.load(masses + row * spans + numbers, mask=(numbers < spans) & (top_k == 0), other=0.0)
            total = tl.sum(in_spans * tl.exp(of_spans.to(tl.float64) / temperature - best_score), axis=0)
            key, last_id, is_near = _border(head + _LIMITS, count, is_whole, best_score, temperature, top_k, top_p, total)
            state = tl.where(is_near, _UNDECIDED, 0)
    tl.store(head, key ^ ((key >> 31) & 0x7FFFFFFF))
    tl.store(head + 1, last_id)
    tl.store(head + 2, state)


def launch_filters(
    logits: torch.Tensor, temperatures: torch.Tensor, top_ks: torch.Tensor, top_ps: torch.Tensor, work: torch.Tensor, masses: torch.Tensor
) -> torch.Tensor:
    """[rows, WORDS] int32, what `filter_kernel` writes.

    Args:
        logits: [rows, width].
        temperatures: [rows] float64, as the following as the kernel wants them.
        top_ks: int64.
        top_ps: float64.
        work: As the draw's first kernel wrote it.
        masses: [rows, spans] float64.
    """
    rows, width = logits.shape
    spans = masses.shape[1]
    head = torch.empty((rows, WORDS), dtype=torch.int32, device=logits.device)
    filter_kernel[(rows,)](
        logits, temperatures, top_ks, top_ps, work, masses, head, width, logits.stride(0), work.stride(0), spans,
        SPANS=triton.next_power_of_2(spans), CHUNK=128, num_warps=8,
    )  # fmt: skip
    return head
