"""What compute_svc/kernels/native/attention.py defines, operation by operation with numpy: the oracle of all instruction sets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.kernels.attention.kv_chunks import slopes_of
from tests.fakes.attention_cases import Store

Floats = npt.NDArray[np.float32]

CHUNK, TILE = 128, 16
_NOTHING = np.float32(-np.inf)


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c, rounded once: the product is exact in float64; its sum is rounded to odd there, which leaves float32 the last word."""
    product, addend = np.multiply(a, b, dtype=np.float64), np.asarray(c, dtype=np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    even = np.isfinite(error) & (error != 0) & (bits % 2 == 0)
    away = (error > 0) == (total > 0)
    return (bits + np.where(even, np.where(away, 1, -1), 0)).view(np.float64).astype(np.float32)


def exponential(x: Floats) -> Floats:
    lowest = np.float32(-87.3365478515625)
    shifted = fma(np.maximum(lowest, x), _float(1.44269504088896341), _float(12583039))
    n = shifted - np.float32(12583039)
    rest = fma(n, _float(1.90465432e-9), fma(n, _float(-0.693147182464599609375), np.maximum(lowest, x)))
    total = _polynomial(rest, (1.393454499e-03, 8.363776840e-03, 4.166645557e-02, 1.666657329e-01, 0.5))
    total = fma(total * rest, rest, rest) + np.float32(1)
    scale = (shifted.view(np.int32) << 23).view(np.float32)
    return np.where(x < lowest, np.float32(0), total * scale)


def hyperbolic_tangent(x: Floats) -> Floats:
    square, size = x * x, np.abs(x)
    total = _polynomial(square, (-6.104948930e-03, 2.100364305e-02, -5.385249853e-02, 1.333278269e-01, -3.333332837e-01))
    capped = np.minimum(size, np.float32(10))
    far = np.float32(1) - np.float32(2) / (exponential(capped + capped) + np.float32(1))
    result: Floats = np.where(size < np.float32(0.625), fma(total * square, x, x), np.copysign(far, x))
    return result


def _polynomial(x: Floats, coefficients: tuple[float, ...]) -> Floats:
    total = _float(coefficients[0])
    for coefficient in coefficients[1:]:
        total = fma(total, x, _float(coefficient))
    return total


def _float(number: float) -> Floats:
    return np.asarray(number, dtype=np.float32)


def attended(
    store: Store, request: int, position: int, query: torch.Tensor, sink_query: torch.Tensor | None, sink_logits: torch.Tensor | None
) -> torch.Tensor:
    """[num_heads * D] float32: what the query [num_heads, D] at a position of a request gets."""
    spec = store.spec
    tokens = torch.arange(position + 1)
    pages = store.page_table[request, tokens // spec.page_size_tokens]
    rows = store.kv.read(pages, tokens % spec.page_size_tokens).repeat_interleave(spec.group_size, dim=0)
    keys, values = _padded(rows).reshape(2, spec.num_heads, position + 1, -1)
    largest, total = np.full(spec.num_heads, _NOTHING), np.zeros(spec.num_heads, dtype=np.float32)
    if sink_logits is not None:
        largest, total = sink_logits.numpy(), np.ones(spec.num_heads, dtype=np.float32)
    summed = np.zeros((spec.num_heads, keys.shape[2]), dtype=np.float32)
    first = max(spec.first_visible(position), spec.sinks)
    stretches = [(sink_query, 0, 0, min(spec.sinks, position + 1))]
    stretches += [
        (query, base, max(first, base), min(position + 1, base + CHUNK)) for base in range(first // CHUNK * CHUNK, position + 1, CHUNK)
    ]
    for asked, base, start, end in stretches:
        if asked is None or start >= end:
            continue
        scores = _scores(_padded(asked), keys[:, start:end], store, np.arange(start, end) - position)
        top = scores.max(axis=1)
        weights = exponential(scores - top[:, None])
        own = np.zeros_like(summed)
        for token in range(start, end):
            own = fma(weights[:, token - start, None], values[:, token], own)
        joint = np.maximum(top, largest)
        kept, joined = exponential(largest - joint), exponential(top - joint)
        total = fma(total, kept, _sum_by_position(weights, start - base) * joined)
        summed = fma(summed, kept[:, None], own * joined[:, None])
        largest = joint
    return torch.from_numpy((summed / total[:, None])[:, : spec.head_dim].reshape(-1))


def _padded(rows: torch.Tensor) -> Floats:
    """Heads with zeros up to a multiple of 16."""
    return torch.nn.functional.pad(rows.float(), (0, -rows.shape[-1] % TILE)).numpy()


def _scores(query: Floats, keys: Floats, store: Store, distances: npt.NDArray[np.int64]) -> Floats:
    """[num_heads, tokens] of [num_heads, D] and [num_heads, tokens, D]."""
    spec = store.spec
    sums = np.zeros((*keys.shape[:2], 4), dtype=np.float32)
    for d in range(0, keys.shape[2], 4):
        sums = fma(query[:, None, d : d + 4], keys[..., d : d + 4], sums)
    scores: Floats = (sums[..., 0] + sums[..., 1]) + (sums[..., 2] + sums[..., 3])
    if spec.softcap is None:
        scores = scores * np.float32(spec.scale)
    else:
        scores = hyperbolic_tangent(scores * np.float32(spec.scale / spec.softcap)) * np.float32(spec.softcap)
    slopes = slopes_of(spec, torch.device("cpu"))
    if slopes is not None:
        assert not spec.rounded_slopes, "the oracle knows plain slopes alone"
        scores = scores + slopes.numpy().reshape(-1, 1) * distances.astype(np.float32)
    shown: Floats = scores
    return shown


def _sum_by_position(weights: Floats, offset: int) -> Floats:
    """[num_heads] of [num_heads, tokens], the first of them `offset` tokens into its chunk."""
    padded = np.zeros((len(weights), CHUNK), dtype=np.float32)
    padded[:, offset : offset + weights.shape[1]] = weights
    lanes = np.zeros((len(weights), TILE), dtype=np.float32)
    for tile in range(0, CHUNK, TILE):
        lanes = lanes + padded[:, tile : tile + TILE]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    result: Floats = lanes[:, 0]
    return result
