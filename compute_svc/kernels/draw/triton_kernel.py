"""The draw in two kernels: one reads the logits once and bounds each block's sums, one finds each row's largest sum by those bounds. Where rows
have top_k or top_p, a third one between them finds which logits these leave (`filters`).

A block is 16 ids that lie 256 apart, and 256 blocks are a span of 4,096 ids that lie side by side. The smallest exponential of a block is known
without those of its ids, so no sum of score and noise of the block is above the score of its largest logit less the logarithm of that. Bounds are
in float32, a little too high rather than too low; sums, by which tokens are chosen, are in float64, with the specification's operations.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from compute_svc.kernels.draw import DrawNumbers
from compute_svc.kernels.draw.filters.triton_kernel import WORDS as LIMIT_WORDS
from compute_svc.kernels.draw.filters.triton_kernel import launch_filters

_LANES = tl.constexpr(16)
_BLOCKS = tl.constexpr(256)  # of a span
_SPAN = tl.constexpr(4096)
_NO_ID = tl.constexpr(0x7FFFFFFF)
# Bounds are off by some 1e-5 at most: differences and noise that count are below 60, and float32 has 24 bits.
_MARGIN = tl.constexpr(1e-4)
# Sums are rounded to float64: those whose bounds are nearer than this share of the best score may be equal.
_SLACK = tl.constexpr(1e-12)
# int32 words of the workspace for each span: a bound, a largest logit and a candidate for each block.
_WORDS = 3 * 256
# And the largest logit, where it is, and the block of the largest bound.
_STATISTICS = 3
_LIMIT_WORDS = tl.constexpr(LIMIT_WORDS)
# A few words of each row: where they begin depends on how many rows there are, which must not make a kernel be compiled anew.
_NUMBERS = ["seeds", "positions", "temperatures", "top_ks", "top_ps"]


@triton.jit
def _bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _load_floats(words, mask, other):
    """What `_bits` stored."""
    return tl.where(mask, tl.load(words, mask=mask, other=0).to(tl.float32, bitcast=True), other)


@triton.jit
def _noise_bounds(seed, position, first_call):
    """[256] float32: -log of the smallest exponential of a span's blocks, each a little too large at most.

    Args:
        first_call: The number of the span's first block, divided by 4.
    """
    calls = first_call + tl.arange(0, 64)
    zeros = calls * 0
    w0, w1, w2, w3 = tl.philox(seed, calls, zeros + position, zeros, zeros)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [256])
    # -log(1 - y), where small y are what counts, and 1 - y would lose them. The series has positive terms, so that ending it makes less of it.
    y = ((words ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * (1 / 4294967296.0)
    series = y * (1.0 + y * (1 / 2 + y * (1 / 3 + y * (1 / 4 + y * (1 / 5)))))
    uniform = (words.to(tl.float32) + 0.5) * (1 / 4294967296.0)
    return -tl.log(tl.where(y < 0.25, series, -tl.log(uniform)) * (1 / 16))


@triton.jit
def _score_below(logits, best, scale):
    """float32: how far scores are above that of a logit, which no float32 logit exceeds by much; finite scores stay finite."""
    return tl.maximum((logits - best).to(tl.float64) * scale, -1e30).to(tl.float32)


@triton.jit
def _first_id(values, best, ids):
    """The lowest id that has the largest logit."""
    return tl.min(tl.min(tl.where(values == best, ids, _NO_ID), axis=0), axis=0)


@triton.jit
def _mass(values, best, temperature, top_k, top_p):
    """float64: the weights of a span's ids, beside its likeliest; 0 where nobody asks."""
    mass = temperature * 0.0
    if (top_p < 1) & (top_k == 0) & (temperature > 0) & (tl.abs(best) < float("inf")):
        scores = values.to(tl.float64) / temperature - best.to(tl.float64) / temperature
        mass = tl.sum(tl.sum(tl.exp(scores), axis=0), axis=0)
    return mass


@triton.jit(do_not_specialize_on_alignment=_NUMBERS)
def scan_kernel(
    logits, seeds, positions, temperatures, top_ks, top_ps, work, masses, width, row_stride, work_stride, spans, GREEDY: tl.constexpr
):  # fmt: skip
    """Looks at one span of one row; a grid of rows * spans.

    Args:
        logits: [rows, width], rows row_stride apart.
        seeds, positions, temperatures: [rows], not given if GREEDY.
        top_ks, top_ps: [rows], or not given.
        masses: [rows, spans] float64, written where those are given: what of the spans' weights top_p has to know.
        work: [rows, work_stride] int32. Written, of each row: unless GREEDY, bounds, less the score of their spans' largest logits, and largest
            logits of all blocks, and room for candidates; then of all spans their largest logits, where those are (an id of a greedy row, a
            block of another), and the blocks of their largest bounds.
    """
    program = tl.program_id(0)
    row, span = (program // spans).to(tl.int64), program % spans
    columns = tl.arange(0, _BLOCKS)
    ids = span * _SPAN + tl.arange(0, _LANES)[:, None] * _BLOCKS + columns[None, :]
    values = tl.load(logits + row * row_stride + ids, mask=ids < width, other=float("-inf")).to(tl.float32)
    work += row * work_stride
    statistics = work + span
    temperature = 0.0
    if not GREEDY:
        # Made while the logits are on their way, for greedy rows too.
        temperature = tl.load(temperatures + row)
        noise = _noise_bounds(tl.load(seeds + row), tl.load(positions + row).to(tl.int32), span * 64)
        statistics += spans * 768
    # A device's maximum would pass NaN over; the row is as broken by an infinity.
    values = tl.where(values == values, values, float("inf"))
    largest = tl.max(values, axis=0)
    best = tl.max(largest, axis=0)
    if GREEDY:
        place = _first_id(values, best, ids)
    elif temperature > 0:
        bounds = _score_below(largest, tl.where(tl.abs(best) < float("inf"), best, 0.0), 1.0 / temperature) + noise
        tl.store(work + span * _BLOCKS + columns, _bits(bounds))
        tl.store(work + (spans + span) * _BLOCKS + columns, _bits(largest))
        top = tl.max(bounds, axis=0)
        tl.store(statistics + 2 * spans, span * _BLOCKS + tl.min(tl.where(bounds == top, columns, _NO_ID), axis=0))
        place = span * _BLOCKS + tl.min(tl.where(largest == best, columns, _NO_ID), axis=0)
    else:
        place = _first_id(values, best, ids)
    tl.store(statistics, _bits(best))
    tl.store(statistics + spans, place)
    if masses is not None:
        tl.store(masses + row * spans + span, _mass(values, best, temperature, tl.load(top_ks + row), tl.load(top_ps + row)))


@triton.jit
def _word(which, w0, w1, w2, w3):
    """One of four words each."""
    return tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))


@triton.jit
def _exponential(words):
    return -tl.log((words.to(tl.float64) + 0.5) * (1 / 4294967296.0))


@triton.jit
def _largest_sum(
    logits, width, blocks, exist, seed, position, temperature, best_score, min_p, border, last_id, MIN_P: tl.constexpr, FILTERED: tl.constexpr
):  # fmt: skip
    """The largest sum of the ids of some blocks, float64, and its id, the lowest among equals.

    Args:
        logits: The row's.
        blocks: [n] int32.
        exist: [n], which of them to look at.
        border, last_id: The lowest logit that filters leave, and the highest id of those that have it, if FILTERED.
    """
    zeros = blocks * 0
    seconds = zeros + position
    w0, w1, w2, w3 = tl.philox(seed, blocks >> 2, seconds, zeros, zeros)
    least = (_exponential(_word(blocks & 3, w0, w1, w2, w3)) * (1 / 16))[:, None]
    w0, w1, w2, w3 = tl.philox(seed, blocks >> 2, seconds, zeros + 1, zeros)
    first = (_word(blocks & 3, w0, w1, w2, w3) >> 28).to(tl.int32)[:, None]
    zeros = tl.zeros((blocks.shape[0], _LANES), tl.int32)
    lanes = tl.arange(0, _LANES)[None, :] + zeros
    each = blocks[:, None] + zeros
    w0, w1, w2, w3 = tl.philox(seed, each, zeros + position, 2 + (lanes >> 2), zeros)
    beyond = _exponential(_word(lanes & 3, w0, w1, w2, w3))
    exponentials = tl.where(lanes == first, least, least + beyond)
    ids = ((each >> 8) << 12) | (each & 255) | (lanes << 8)
    values = tl.load(logits + ids, mask=exist[:, None] & (ids < width), other=float("-inf")).to(tl.float32)
    scores = values.to(tl.float64) / temperature
    sums = scores - tl.log(exponentials)
    if MIN_P:
        sums = tl.where(tl.exp(scores - best_score) >= min_p, sums, float("-inf"))
    if FILTERED:
        sums = tl.where((values > border) | ((values == border) & (ids <= last_id)), sums, float("-inf"))
    largest = tl.max(tl.max(sums, axis=1), axis=0)
    return largest, tl.min(tl.min(tl.where(sums == largest, ids, _NO_ID), axis=1), axis=0)


@triton.jit
def _candidates(work, spans, best, temperature, known, floor, border, MIN_P: tl.constexpr, FILTERED: tl.constexpr, TILE: tl.constexpr):
    """Lists the blocks whose bounds reach `known`, rising; returns how many they are.

    Args:
        work: The row's.
        best: The row's largest logit.
        known: What bounds have to reach, above the best score.
        floor: The least score, above the best, that min_p may leave.
        border: The lowest logit that filters leave, if FILTERED.
    """
    statistics = work + spans * 768
    columns = tl.arange(0, _BLOCKS)[None, :]
    scale = 1.0 / temperature
    count = 0
    for first in range(0, spans, TILE):
        some = first + tl.arange(0, TILE)[:, None]
        inside = some < spans
        below = _score_below(_load_floats(statistics + some, inside, float("-inf")), best, scale)
        blocks = some * _BLOCKS + columns
        inside = inside & (columns >= 0)
        near = inside & (_load_floats(work + blocks, inside, float("-inf")) + below >= known)
        if MIN_P or FILTERED:
            largest = _load_floats(work + spans * _BLOCKS + blocks, inside, float("-inf"))
            if MIN_P:
                near = near & (_score_below(largest, best, scale) >= floor)
            if FILTERED:
                near = near & (largest >= border)
        flat = tl.reshape(near.to(tl.int32), [TILE * _BLOCKS])
        places = count + tl.cumsum(flat, axis=0) - flat
        tl.store(work + spans * (2 * _BLOCKS) + places, tl.reshape(blocks, [TILE * _BLOCKS]), mask=flat > 0)
        count += tl.sum(flat, axis=0)
    return count


@triton.jit(do_not_specialize_on_alignment=[*_NUMBERS, "min_ps", "tokens", "flags", "bests"])
def choose_kernel(
    logits, seeds, positions, temperatures, min_ps, work, limits, tokens, flags, bests, width, row_stride, work_stride, spans,
    GREEDY: tl.constexpr, SPANS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Chooses one row's token; a grid of rows.

    Args:
        min_ps: [rows] or not given, as those before if GREEDY.
        limits: [rows, LIMIT_WORDS] int32, as the filters' kernel writes it, or not given.
        tokens: [rows] int64.
        flags: [rows], or not given.
        bests: [rows] float32, or not given: the largest logits.
    """
    row = tl.program_id(0).to(tl.int64)
    work += row * work_stride
    numbers = tl.arange(0, SPANS)
    inside = numbers < spans
    statistics = work
    temperature = 0.0
    if not GREEDY:
        temperature = tl.load(temperatures + row)
        statistics += spans * 768
    of_spans = _load_floats(statistics + numbers, inside, float("-inf"))
    best = tl.max(of_spans, axis=0)
    places = tl.load(statistics + spans + numbers, mask=inside, other=_NO_ID)
    place = tl.min(tl.where(of_spans == best, places, _NO_ID), axis=0)
    is_finite = (best > float("-inf")) & (best < float("inf"))
    FILTERED: tl.constexpr = limits is not None
    border, last_id, state = float("-inf"), _NO_ID, 0
    if FILTERED:
        limits += row * _LIMIT_WORDS
        border = tl.load(limits).to(tl.float32, bitcast=True)
        last_id, state = tl.load(limits + 1), tl.load(limits + 2)
    token = place
    if not GREEDY and temperature > 0:
        token = ((place >> 8) << 12) | (place & 255)
        if is_finite:
            seed, position = tl.load(seeds + row), tl.load(positions + row).to(tl.int32)
            logits += row * row_stride
            score = best.to(tl.float64) / temperature
            tops = tl.load(statistics + 2 * spans + numbers, mask=inside, other=0)
            min_p, floor = score * 0, float("-inf")
            MIN_P: tl.constexpr = min_ps is not None
            if MIN_P or FILTERED:
                # They leave the likeliest id for certain, and perhaps none of the promising blocks'.
                tops = tl.where(numbers == place >> 8, place, tops)
            if MIN_P:
                min_p = tl.load(min_ps + row)
                floor = tl.log(tl.maximum(min_p, 1e-300)).to(tl.float32) - _MARGIN
            largest, token = _largest_sum(
                logits, width, tops, inside, seed, position, temperature, score, min_p, border, last_id, MIN_P, FILTERED
            )  # fmt: skip
            known = (largest - score - tl.abs(score) * _SLACK).to(tl.float32) - _MARGIN
            count = _candidates(work, spans, best, temperature, known, floor, border, MIN_P, FILTERED, TILE)
            # The list is read by other threads than wrote it.
            tl.debug_barrier()
            for start in range(0, count, CHUNK):
                each = start + tl.arange(0, CHUNK)
                listed = each < count
                blocks = tl.load(work + spans * 512 + each, mask=listed, other=0)
                other, of_other = _largest_sum(
                    logits, width, blocks, listed, seed, position, temperature, score, min_p, border, last_id, MIN_P, FILTERED
                )  # fmt: skip
                token = tl.where(other > largest, of_other, tl.where(other == largest, tl.minimum(token, of_other), token))
                largest = tl.maximum(largest, other)
    tl.store(tokens + row, token.to(tl.int64))
    if flags is not None:
        tl.store(flags + row, tl.where(is_finite, state, 1))
    if bests is not None:
        tl.store(bests + row, best)


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See the public function."""
    tokens = torch.empty((logits.shape[0], 1), dtype=torch.int64, device=logits.device)
    best = torch.empty((logits.shape[0], 1), dtype=torch.float32, device=logits.device)
    draw_into(logits, None, tokens, None, best)
    return tokens, best


def draw_into(
    logits: torch.Tensor,
    numbers: DrawNumbers | None,
    out_tokens: torch.Tensor,
    out_flags: torch.Tensor | None,
    out_best: torch.Tensor | None = None,
) -> None:
    """See the public function."""
    rows, width = logits.shape
    assert logits.stride(1) == 1, "logits of a row lie side by side"
    if not rows:
        return
    seeds, positions, temperatures, min_ps, top_ks, top_ps = (None,) * 6 if numbers is None else numbers
    masses = limits = None
    is_greedy = numbers is None
    spans = triton.cdiv(width, _SPAN.value)
    # Starts of rows stay aligned.
    words = -(-spans * (_STATISTICS if is_greedy else _STATISTICS + _WORDS) // 16) * 16
    work = torch.empty((rows, words), dtype=torch.int32, device=logits.device)
    stride, padded = logits.stride(0), triton.next_power_of_2(spans)
    if top_ks is not None:
        # What top_p has to know of each span.
        masses = torch.empty((rows, spans), dtype=torch.float64, device=logits.device)
    scan_kernel[(rows * spans,)](
        logits, seeds, positions, temperatures, top_ks, top_ps, work, masses, width, stride, words, spans, GREEDY=is_greedy, num_warps=4
    )  # fmt: skip
    if masses is not None:
        assert temperatures is not None and top_ks is not None and top_ps is not None, "filters come with noise, and together"
        limits = launch_filters(logits, temperatures, top_ks, top_ps, work, masses)
    choose_kernel[(rows,)](
        logits, seeds, positions, temperatures, min_ps, work, limits, out_tokens, out_flags, out_best, width, stride, words, spans,
        GREEDY=is_greedy, SPANS=padded, TILE=min(padded, 8), CHUNK=32, num_warps=1 if is_greedy else 8,
    )  # fmt: skip
