"""Each program of a split hands in largest scores, sums of weights and weighted values; the last of them adds all up, in their order.

A place is a row of `partials` and of `stats`: one head of one query, of one split.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from compute_svc.kernels.triton_parts import is_last_of, rounded

_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def hand_in(best, total, acc, partials, stats, counter, count, places, here, dims, D: tl.constexpr):
    """Stores what a split has of some places; returns whether all splits have handed in, and sets their counter back then.

    Args:
        best: [rows] float32, largest score, a power of two.
        total: [rows] float32, sum of weights.
        acc: [rows, PAD_D] float32, values times their weights.
        partials: [places, D] float32.
        stats: [places, 2] float32, largest score and sum of weights.
        counter: int32, of those that have handed in.
        count: How many splits there are.
        places: [rows].
        here: [rows], which are stored.
        dims: [PAD_D].
        D: Width of heads.
    """
    tl.store(stats + places * 2, best, mask=here)
    tl.store(stats + places * 2 + 1, total, mask=here)
    tl.store(partials + places[:, None] * D + dims[None, :], acc, mask=here[:, None] & (dims < D)[None, :])
    return is_last_of(counter, count)


@triton.jit
def add_splits(
    partials, stats, first, stride, count, offsets, here, HEADS: tl.constexpr, D: tl.constexpr, PAD_D: tl.constexpr, SPLITS: tl.constexpr
):
    """Largest score, sum of weights and weighted values over all splits, [rows], [rows] and [rows, PAD_D].

    Args:
        partials, stats, count, here: As `hand_in` has them.
        first: Where the first split begins, in HEADS places, and
        stride: where each next one.
        offsets: [rows], their places from where a split begins.
        HEADS: Of a model.
        D: Width of heads.
        PAD_D: The same as a power of two.
        SPLITS: How many are read at a time.
    """
    dims = tl.arange(0, PAD_D)
    best = tl.full(offsets.shape, -float("inf"), tl.float32)
    total = tl.zeros(offsets.shape, tl.float32)
    acc = tl.zeros((offsets.shape[0], PAD_D), tl.float32)
    for start in range(0, count, SPLITS):
        splits = start + tl.arange(0, SPLITS)
        places = (first + splits * stride)[:, None] * HEADS + offsets[None, :]
        ours = (splits < count)[:, None] & here[None, :]
        # Not from a cache of this processor: others have written them meanwhile.
        parts = tl.load(
            partials + places[:, :, None] * D + dims[None, None, :],
            mask=ours[:, :, None] & (dims < D)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        scores = tl.load(stats + places * 2, mask=ours, other=0.0, cache_modifier=".cg")
        sums = tl.load(stats + places * 2 + 1, mask=ours, other=0.0, cache_modifier=".cg")
        scores = tl.where((splits < count)[:, None], scores, -float("inf"))
        larger = tl.maximum(best, tl.max(scores, 0))
        shrunk = tl.exp2(best - larger)
        weights = tl.exp2(scores - larger[None, :])
        total = total * shrunk + tl.sum(sums * weights, 0)
        acc = acc * shrunk[:, None] + tl.sum(parts * weights[:, :, None], 0)
        best = larger
    return best, total, acc


@triton.jit
def finish(best, total, acc, sink_logits, heads, here, out, dims, D: tl.constexpr, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """Stores acc [rows, PAD_D] divided by total [rows], the sum of weights of which `best` is the largest score; nothing seen gives zeros.

    Args:
        best, total, acc, here, dims, D: As `hand_in` has them.
        sink_logits: [num_heads] or None.
        heads: [rows], the head of each.
        out: [rows, 1] pointers, the first number of each.
        DTYPE: Of out.
        INTERPRETED: Whether this runs in the interpreter.
    """
    if sink_logits is not None:
        sink = tl.load(sink_logits + heads, mask=here, other=0.0).to(tl.float32) * _LOG2_E
        largest = tl.maximum(best, sink)
        shrunk = tl.exp2(best - largest)
        total = total * shrunk + tl.exp2(sink - largest)
        acc = acc * shrunk[:, None]
    answer = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + dims[None, :], rounded(answer, DTYPE, INTERPRETED), mask=here[:, None] & (dims < D)[None, :])
