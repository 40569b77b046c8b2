"""Both attention kernels: the reference against plain arithmetic, the fast backend against the reference."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch

from compute_svc.kernels.attention_spec import AttentionSpec
from compute_svc.kernels.decode_attention import cpu as decode_cpu
from compute_svc.kernels.decode_attention import decode_attention, plan_decode
from compute_svc.kernels.decode_attention import reference as decode_reference
from compute_svc.kernels.prefill_attention import cpu as prefill_cpu
from compute_svc.kernels.prefill_attention import plan_prefill, prefill_attention
from compute_svc.kernels.prefill_attention import reference as prefill_reference
from tests.fakes.kernel_closeness import assert_kernel_close

ODD_LENGTHS = [1, 15, 16, 17, 63, 128, 129, 300]


class Shape(NamedTuple):
    """Parameters of an AttentionSpec."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size_tokens: int
    window: int | None
    slopes: tuple[float, ...] | None = None
    softcap: float | None = None


SHAPES = [
    pytest.param(Shape(4, 4, 16, 16, None), id="mha"),
    pytest.param(Shape(8, 2, 32, 16, None), id="gqa"),
    pytest.param(Shape(6, 1, 12, 16, None), id="mqa"),
    pytest.param(Shape(1, 1, 8, 16, None), id="one-head"),
    pytest.param(Shape(6, 2, 16, 16, 20), id="window"),
    pytest.param(Shape(6, 2, 16, 16, 150), id="window-over-a-chunk"),
    pytest.param(Shape(4, 2, 16, 1, None), id="one-token-pages"),
    pytest.param(Shape(4, 2, 16, 24, 40), id="pages-that-do-not-divide-chunks"),
    pytest.param(Shape(4, 2, 16, 256, None), id="pages-longer-than-chunks"),
    pytest.param(Shape(4, 2, 16, 16, None, (0.5, 0.25, 0.125, 0.01)), id="slopes"),
    pytest.param(Shape(3, 1, 16, 16, 40, (0.5, 0.25, 0.125)), id="slopes-mqa-window"),
    pytest.param(Shape(4, 2, 16, 16, None, None, 1.5), id="softcap"),
    pytest.param(Shape(2, 2, 16, 16, 150, (0.5, 0.25), 2.0), id="slopes-softcap-window"),
]
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]


class Store(NamedTuple):
    """Random KV of some requests, in a store that is otherwise poison."""

    kv: torch.Tensor
    page_table: torch.Tensor
    spec: AttentionSpec


def _rest(shape: Shape) -> dict[str, Any]:
    return {"window": shape.window, "slopes": shape.slopes, "softcap": shape.softcap}


def store_of(shape: Shape, lengths: list[int], dtype: torch.dtype) -> Store:
    generator = torch.Generator().manual_seed(0)
    size = shape.page_size_tokens
    pages_of = [math.ceil(length / size) for length in lengths]
    num_pages = sum(pages_of) + 3
    kv = torch.full((2 * shape.num_kv_heads, num_pages, size, shape.head_dim), torch.nan, dtype=dtype)
    free = (1 + torch.randperm(num_pages - 1, generator=generator)).tolist()
    page_table = torch.zeros((len(lengths), max(pages_of) + 1), dtype=torch.int64)
    for request, (length, count) in enumerate(zip(lengths, pages_of, strict=True)):
        own, free = free[:count], free[count:]
        page_table[request, :count] = torch.tensor(own)
        kv[:, own] = torch.randn((2 * shape.num_kv_heads, count, size, shape.head_dim), generator=generator).to(dtype)
        kv[:, own[-1], (length - 1) % size + 1 :] = 1e30
    spec = AttentionSpec(*shape[:4], num_pages=num_pages, scale=shape.head_dim**-0.5, **_rest(shape))
    return Store(kv, page_table, spec)


def queries_of(count: int, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """[count, num_heads, D], strided as inside a wider projection."""
    wide = torch.randn((count, shape.num_heads + 3, shape.head_dim), generator=torch.Generator().manual_seed(1))
    return wide.to(dtype)[:, : shape.num_heads]


def naive_attention(query: torch.Tensor, store: Store, request: int, position: int) -> list[list[float]]:
    """[num_heads][D] by plain arithmetic on Python floats."""
    spec, size = store.spec, store.spec.page_size_tokens
    first = 0 if spec.window is None else max(0, position - spec.window + 1)
    seen = [(int(store.page_table[request, p // size]), p % size) for p in range(first, position + 1)]
    rows = []
    for head in range(spec.num_heads):
        kv_head = head // (spec.num_heads // spec.num_kv_heads)
        keys = [store.kv[kv_head, page, offset].tolist() for page, offset in seen]
        values = [store.kv[spec.num_kv_heads + kv_head, page, offset].tolist() for page, offset in seen]
        scores = [spec.scale * sum(a * b for a, b in zip(query[head].tolist(), key, strict=True)) for key in keys]
        if spec.softcap is not None:
            scores = [spec.softcap * math.tanh(score / spec.softcap) for score in scores]
        if spec.slopes is not None:
            scores = [score - spec.slopes[head] * (position - key) for key, score in enumerate(scores, start=first)]
        weights = [math.exp(score - max(scores)) for score in scores]
        rows.append([sum(w * value[d] for w, value in zip(weights, values, strict=True)) / sum(weights) for d in range(spec.head_dim)])
    return rows


@pytest.mark.parametrize("shape", [Shape(4, 2, 6, 4, None), Shape(3, 1, 4, 3, 5), Shape(2, 1, 4, 3, 5, (0.3, 0.1), 0.7)])
def test_the_references_do_what_plain_arithmetic_does(shape: Shape) -> None:
    lengths = [1, 4, 11]
    store = store_of(shape, lengths, torch.float32)
    q = queries_of(sum(lengths), shape, torch.float32)
    starts = list(itertools.accumulate(lengths, initial=0))
    prefilled = torch.empty((len(q), shape.num_heads * shape.head_dim))
    prefill_reference.prefill_attention(
        q, store.kv, prefill_reference.plan_prefill(store.page_table, lengths, starts, store.spec), prefilled
    )
    decoded = torch.empty((3, shape.num_heads * shape.head_dim))
    ends = [start - 1 for start in starts[1:]]
    decode_reference.decode_attention(q[ends], store.kv, decode_reference.plan_decode(store.page_table, lengths, store.spec), decoded)

    for request, length in enumerate(lengths):
        for position in range(length):
            row = starts[request] + position
            assert_kernel_close("prefill", prefilled[row], torch.tensor(naive_attention(q[row], store, request, position)).view(-1))
        assert_kernel_close("decode", decoded[request], prefilled[ends[request]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_decode_attention_on_cpu_is_the_reference(shape: Shape, dtype: torch.dtype) -> None:
    store = store_of(shape, ODD_LENGTHS, dtype)
    q = queries_of(len(ODD_LENGTHS), shape, dtype)
    out = torch.full((len(q), shape.num_heads * shape.head_dim), torch.nan, dtype=dtype)
    expected = torch.empty_like(out)

    decode_cpu.decode_attention(q, store.kv, decode_cpu.plan_decode(store.page_table, ODD_LENGTHS, store.spec), out)

    plan = decode_reference.plan_decode(store.page_table, ODD_LENGTHS, store.spec)
    decode_reference.decode_attention(q, store.kv, plan, expected)
    assert_kernel_close("decode_attention", out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_prefill_attention_on_cpu_is_the_reference(shape: Shape, dtype: torch.dtype) -> None:
    store = store_of(shape, ODD_LENGTHS, dtype)
    counts = [1, 15, 1, 2, 63, 5, 129, 200]
    starts = list(itertools.accumulate(counts, initial=3))
    q = queries_of(starts[-1] + 2, shape, dtype)
    out = torch.full((len(q), shape.num_heads * shape.head_dim), torch.nan, dtype=dtype)
    expected = out.clone()

    prefill_cpu.prefill_attention(q, store.kv, prefill_cpu.plan_prefill(store.page_table, ODD_LENGTHS, starts, store.spec), out)

    plan = prefill_reference.plan_prefill(store.page_table, ODD_LENGTHS, starts, store.spec)
    prefill_reference.prefill_attention(q, store.kv, plan, expected)
    assert_kernel_close("prefill_attention", out[3:-2], expected[3:-2])
    assert out[:3].isnan().all() and out[-2:].isnan().all(), "rows of no request were written"


def test_requests_too_long_to_be_gathered_together_are_gathered_apart() -> None:
    shape, lengths = Shape(4, 2, 16, 16, None), [300] * 5 + [290]
    store = store_of(shape, lengths, torch.float32)
    q = queries_of(len(lengths), shape, torch.float32)
    together, apart = torch.empty((2, len(q), 64))
    decode_cpu.decode_attention(q, store.kv, decode_cpu.plan_decode(store.page_table, lengths, store.spec), together)
    token_bytes = 2 * 2 * 16 * 4

    plan = decode_cpu.plan_decode(store.page_table, lengths, store.spec, max_bucket_bytes=2 * 320 * token_bytes)

    decode_cpu.decode_attention(q, store.kv, plan, apart)
    assert sorted(bucket.num_rows for bucket in plan.buckets) == [2, 2, 2]
    assert torch.equal(apart, together)


def test_the_public_functions_run_the_cpu_backends_on_a_cpu() -> None:
    shape = Shape(4, 2, 16, 16, None)
    store = store_of(shape, [20], torch.float32)
    decoding, prefilling = plan_decode(store.page_table, [20], store.spec), plan_prefill(store.page_table, [20], [0, 20], store.spec)
    q, (decoded, prefilled) = queries_of(20, shape, torch.float32), torch.full((2, 20, 64), torch.nan)

    decode_attention(q[19:], store.kv, decoding, decoded[19:])
    prefill_attention(q, store.kv, prefilling, prefilled)

    assert isinstance(decoding, decode_cpu.DecodePlan) and isinstance(prefilling, prefill_cpu.PrefillPlan)
    assert torch.equal(decoded[19], prefilled[19])
