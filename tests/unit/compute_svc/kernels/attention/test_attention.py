"""Both attention kernels: the reference against plain arithmetic, the backends against the reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.gathered_attention import GatheredPlan, gathered_attention, plan_gathered
from compute_svc.kernels.decode_attention import cpu as decode_cpu
from compute_svc.kernels.decode_attention import decode_attention, plan_decode
from compute_svc.kernels.decode_attention import reference as decode_reference
from compute_svc.kernels.exact_products import use_exact_products
from compute_svc.kernels.native import NativeMode
from compute_svc.kernels.native.attention import NativePlan, native_attention, plan_native
from compute_svc.kernels.prefill_attention import cpu as prefill_cpu
from compute_svc.kernels.prefill_attention import plan_prefill, prefill_attention
from compute_svc.kernels.prefill_attention import reference as prefill_reference
from tests.fakes.attention_cases import Shape, Store, moved, queries_of, sink_queries_of, store_of
from tests.fakes.kernel_closeness import assert_kernel_close
from tests.fakes.native_kernels import native_kernels
from tests.fakes.native_libraries import native_libraries

ODD_LENGTHS = [1, 15, 16, 17, 63, 128, 129, 300]


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
    pytest.param(Shape(4, 2, 16, 16, None, (0.5, 0.25, 0.125, 0.07), rounded_slopes=True), id="rounded-slopes"),
    pytest.param(Shape(3, 1, 16, 16, 40, (0.5, 0.3, 0.11), rounded_slopes=True), id="rounded-slopes-mqa-window"),
    pytest.param(Shape(4, 2, 16, 16, None, None, 1.5), id="softcap"),
    pytest.param(Shape(2, 2, 16, 16, 150, (0.5, 0.25), 2.0), id="slopes-softcap-window"),
    pytest.param(Shape(4, 1, 256, 16, None), id="wide-heads"),
]
SHAPES_WITH_SINKS = [
    pytest.param(Shape(6, 2, 16, 16, 20, sinks=4), id="sinks"),
    pytest.param(Shape(8, 4, 16, 16, 150, sinks=32), id="most-sinks-window-over-a-chunk"),
    pytest.param(Shape(6, 1, 12, 16, 1, sinks=1), id="one-sink-narrowest-window-mqa"),
    pytest.param(Shape(1, 1, 8, 1, 100, None, 1.5, sinks=5), id="sinks-softcap-one-head-one-token-pages"),
    pytest.param(Shape(4, 2, 16, 24, 500, sinks=4), id="sinks-window-over-all-odd-pages"),
    pytest.param(Shape(4, 2, 16, 256, 40, sinks=20), id="sinks-long-pages"),
]
BACKENDS = ["cpu", "native", "aten"]
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]


def naive_attention(query: torch.Tensor, sink_query: torch.Tensor | None, store: Store, request: int, position: int) -> list[list[float]]:
    """[num_heads][D] by plain arithmetic on Python floats."""
    spec, size = store.spec, store.spec.page_size_tokens
    first = 0 if spec.window is None else max(0, position - spec.window + 1)
    seen = [p for p in range(position + 1) if p < spec.sinks or p >= first]
    places = [(int(store.page_table[request, p // size]), p % size) for p in seen]
    rows = []
    for head in range(spec.num_heads):
        kv_head = head // (spec.num_heads // spec.num_kv_heads)
        keys = [store.kv.data[kv_head, page, offset].tolist() for page, offset in places]
        values = [store.kv.data[spec.num_kv_heads + kv_head, page, offset].tolist() for page, offset in places]
        asked = [(sink_query if sink_query is not None and p < spec.sinks else query)[head].tolist() for p in seen]
        scores = [spec.scale * sum(a * b for a, b in zip(ask, key, strict=True)) for ask, key in zip(asked, keys, strict=True)]
        if spec.softcap is not None:
            scores = [spec.softcap * math.tanh(score / spec.softcap) for score in scores]
        if spec.slopes is not None:
            scores = [score + _slope_bias(spec, head, position, p) for p, score in zip(seen, scores, strict=True)]
        weights = [math.exp(score - max(scores)) for score in scores]
        rows.append([sum(w * value[d] for w, value in zip(weights, values, strict=True)) / sum(weights) for d in range(spec.head_dim)])
    return rows


def _slope_bias(spec: AttentionSpec, head: int, position: int, key: int) -> float:
    assert spec.slopes is not None
    if not spec.rounded_slopes:
        return -spec.slopes[head] * (position - key)
    rounded = [torch.tensor(float(number)).bfloat16() for number in (spec.slopes[head], key)]
    return spec.scale * (rounded[0] * rounded[1]).item()


@pytest.mark.parametrize(
    "shape",
    [
        Shape(4, 2, 6, 4, None),
        Shape(4, 2, 6, 4, None, (0.5, 0.3, 0.11, 0.07), rounded_slopes=True),
        Shape(3, 1, 4, 3, 5),
        Shape(2, 1, 4, 3, 5, (0.3, 0.1), 0.7),
        Shape(4, 2, 6, 4, 3, sinks=2),
        Shape(3, 1, 4, 3, 1, None, 0.7, sinks=5),
        Shape(3, 1, 4, 3, 20, sinks=5),
    ],
)
def test_the_references_do_what_plain_arithmetic_does(shape: Shape) -> None:
    lengths = [1, 4, 11]
    store = store_of(shape, lengths, torch.float32)
    q = queries_of(sum(lengths), shape, torch.float32)
    starts = list(itertools.accumulate(lengths, initial=0))
    prefilled = torch.empty((len(q), shape.num_heads * shape.head_dim))
    sink_q = sink_queries_of(q, shape)
    prefill_reference.prefill_attention(
        q, store.kv, prefill_reference.plan_prefill(store.page_table, lengths, starts, store.spec), prefilled, sink_q
    )
    decoded = torch.empty((3, shape.num_heads * shape.head_dim))
    ends = [start - 1 for start in starts[1:]]
    plan = decode_reference.plan_decode(store.page_table, lengths, store.spec)
    decode_reference.decode_attention(q[ends], store.kv, plan, decoded, None if sink_q is None else sink_q[ends])

    for request, length in enumerate(lengths):
        for position in range(length):
            row = starts[request] + position
            expected = naive_attention(q[row], None if sink_q is None else sink_q[row], store, request, position)
            assert_kernel_close("prefill", prefilled[row], torch.tensor(expected).view(-1))
        assert_kernel_close("decode", decoded[request], prefilled[ends[request]])


def decode_with(
    backend: str,
    q: torch.Tensor,
    store: Store,
    lengths: Sequence[int],
    out: torch.Tensor,
    sink_q: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
) -> None:
    if backend == "native":
        plan = plan_native(native_libraries()[0], store.page_table, lengths, range(len(lengths) + 1), store.spec)
        native_attention(q, store.kv, plan, out, sink_q, sink_logits)
    elif backend == "cpu":
        decode_cpu.decode_attention(q, store.kv, decode_cpu.plan_decode(store.page_table, lengths, store.spec), out, sink_q, sink_logits)
    else:
        gathered = plan_gathered(store.page_table, lengths, range(len(lengths) + 1), store.spec)
        gathered_attention(q, store.kv, gathered, out, sink_q, sink_logits)


def prefill_with(
    backend: str,
    q: torch.Tensor,
    store: Store,
    lengths: Sequence[int],
    starts: Sequence[int],
    out: torch.Tensor,
    sink_q: torch.Tensor | None,
    sink_logits: torch.Tensor | None = None,
) -> None:
    if backend == "native":
        native = plan_native(native_libraries()[0], store.page_table, lengths, starts, store.spec)
        native_attention(q, store.kv, native, out, sink_q, sink_logits)
    elif backend == "cpu":
        plan = prefill_cpu.plan_prefill(store.page_table, lengths, starts, store.spec)
        prefill_cpu.prefill_attention(q, store.kv, plan, out, sink_q, sink_logits)
    else:
        gathered_attention(q, store.kv, plan_gathered(store.page_table, lengths, starts, store.spec), out, sink_q, sink_logits)


SINK_LOGIT_SHAPES = [
    pytest.param(Shape(4, 4, 16, 16, None), id="mha"),
    pytest.param(Shape(8, 2, 16, 16, 20), id="gqa-window"),
    pytest.param(Shape(6, 1, 12, 16, 150, None, 1.5), id="mqa-window-over-a-chunk-softcap"),
    pytest.param(Shape(3, 1, 8, 4, None, (0.5, 0.25, 0.125)), id="mqa-slopes"),
]


def sink_logits_of(shape: Shape) -> torch.Tensor:
    """Some that take nearly nothing and some that take nearly all."""
    return torch.linspace(-2, 4, shape.num_heads)


@pytest.mark.parametrize("shape", SINK_LOGIT_SHAPES)
def test_a_sink_logit_is_one_more_key_with_that_score_and_no_value(shape: Shape) -> None:
    """The references: what a query gets becomes less by the share that the logit takes."""
    lengths = [1, 7, 40]
    store = store_of(shape, lengths, torch.float32)
    q = queries_of(len(lengths), shape, torch.float32)
    plan = decode_reference.plan_decode(store.page_table, lengths, store.spec)
    without, nothing, half = torch.empty((3, len(lengths), shape.num_heads * shape.head_dim))
    decode_reference.decode_attention(q, store.kv, plan, without)

    decode_reference.decode_attention(q, store.kv, plan, nothing, None, torch.full((shape.num_heads,), -torch.inf))
    # With one token alone, its own score as the logit takes half.
    own = (
        q[0] * store.kv.data[: shape.num_kv_heads, store.page_table[0, 0], 0].repeat_interleave(shape.num_heads // shape.num_kv_heads, 0)
    ).sum(1)
    score = own * store.spec.scale if shape.softcap is None else shape.softcap * torch.tanh(own * store.spec.scale / shape.softcap)
    decode_reference.decode_attention(q, store.kv, plan, half, None, score)

    torch.testing.assert_close(nothing, without)
    torch.testing.assert_close(half[0], without[0] / 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SINK_LOGIT_SHAPES)
def test_attention_with_sink_logits_is_the_reference(shape: Shape, backend: str, dtype: torch.dtype) -> None:
    store, logits = store_of(shape, ODD_LENGTHS, dtype), sink_logits_of(shape)
    counts = [1, 15, 1, 2, 63, 5, 129, 200]
    starts = list(itertools.accumulate(counts, initial=0))
    q = queries_of(starts[-1], shape, dtype)
    prefilled = torch.empty((len(q), shape.num_heads * shape.head_dim), dtype=dtype)
    decoded, expected = torch.empty_like(prefilled[: len(counts)]), torch.empty_like(prefilled)
    plan = prefill_reference.plan_prefill(store.page_table, ODD_LENGTHS, starts, store.spec)
    prefill_reference.prefill_attention(q, store.kv, plan, expected, None, logits)
    last = [end - 1 for end in starts[1:]]

    prefill_with(backend, q, store, ODD_LENGTHS, starts, prefilled, None, logits)
    decode_with(backend, q[last], store, ODD_LENGTHS, decoded, None, logits)

    assert_kernel_close("prefill_attention", prefilled, expected)
    assert_kernel_close("decode_attention", decoded, expected[last])
    if backend != "aten":
        assert torch.equal(decoded, prefilled[last]), "bits differ between a decode row and the same query in a prompt"


def test_sink_logits_beside_sinks_are_refused() -> None:
    shape = Shape(6, 2, 16, 16, 20, sinks=4)
    store = store_of(shape, [5], torch.float32)
    q, out = queries_of(1, shape, torch.float32), torch.empty((1, 96))

    with pytest.raises(ValueError, match="sink_logits do not go with sinks"):
        decode_attention(q, store.kv, plan_decode(store.page_table, [5], store.spec), out, sink_q=q, sink_logits=sink_logits_of(shape))
    with pytest.raises(ValueError, match="sink_logits do not go with sinks"):
        plan = plan_prefill(store.page_table, [5], [0, 1], store.spec)
        prefill_attention(q, store.kv, plan, out, sink_q=q, sink_logits=sink_logits_of(shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [*SHAPES, *SHAPES_WITH_SINKS])
def test_decode_attention_is_the_reference(shape: Shape, backend: str, dtype: torch.dtype) -> None:
    store = store_of(shape, ODD_LENGTHS, dtype)
    q = queries_of(len(ODD_LENGTHS), shape, dtype)
    out = torch.full((len(q), shape.num_heads * shape.head_dim), torch.nan, dtype=dtype)
    expected = torch.empty_like(out)
    sink_q = sink_queries_of(q, shape)

    decode_with(backend, q, store, ODD_LENGTHS, out, sink_q)

    plan = decode_reference.plan_decode(store.page_table, ODD_LENGTHS, store.spec)
    decode_reference.decode_attention(q, store.kv, plan, expected, sink_q)
    assert_kernel_close("decode_attention", out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [*SHAPES, *SHAPES_WITH_SINKS])
def test_prefill_attention_is_the_reference(shape: Shape, backend: str, dtype: torch.dtype) -> None:
    store = store_of(shape, ODD_LENGTHS, dtype)
    counts = [1, 15, 1, 2, 63, 5, 129, 200]
    starts = list(itertools.accumulate(counts, initial=3))
    q = queries_of(starts[-1] + 2, shape, dtype)
    out = torch.full((len(q), shape.num_heads * shape.head_dim), torch.nan, dtype=dtype)
    expected = out.clone()
    sink_q = sink_queries_of(q, shape)

    prefill_with(backend, q, store, ODD_LENGTHS, starts, out, sink_q)

    plan = prefill_reference.plan_prefill(store.page_table, ODD_LENGTHS, starts, store.spec)
    prefill_reference.prefill_attention(q, store.kv, plan, expected, sink_q)
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


def test_the_public_functions_run_gathered_attention_on_a_device() -> None:
    store = store_of(Shape(4, 2, 16, 16, None), [20, 3], torch.bfloat16)
    table, kv = store.page_table.to("meta"), moved(store.kv, "meta")
    decoding, prefilling = plan_decode(table, [20, 3], store.spec), plan_prefill(table, [20, 3], [0, 20, 23], store.spec)
    q, out = torch.empty((23, 4, 16), dtype=torch.bfloat16, device="meta"), torch.empty((23, 64), dtype=torch.bfloat16, device="meta")

    decode_attention(q[:2], kv, decoding, out[:2])
    prefill_attention(q, kv, prefilling, out)

    assert isinstance(decoding, GatheredPlan) and isinstance(prefilling, GatheredPlan)


@pytest.mark.parametrize("mode", ["off", "required"])
def test_the_public_functions_run_what_was_chosen_for_a_cpu(mode: NativeMode) -> None:
    shape = Shape(4, 2, 16, 16, None)
    store = store_of(shape, [20], torch.float32)
    q, (decoded, prefilled) = queries_of(20, shape, torch.float32), torch.full((2, 20, 64), torch.nan)

    with native_kernels(mode):
        decoding, prefilling = plan_decode(store.page_table, [20], store.spec), plan_prefill(store.page_table, [20], [0, 20], store.spec)
        decode_attention(q[19:], store.kv, decoding, decoded[19:])
        prefill_attention(q, store.kv, prefilling, prefilled)

    assert isinstance(decoding, NativePlan if mode == "required" else decode_cpu.DecodePlan)
    assert isinstance(prefilling, NativePlan if mode == "required" else prefill_cpu.PrefillPlan)
    assert torch.equal(decoded[19], prefilled[19])


@pytest.mark.parametrize("num_heads", [96, 97])
def test_a_layer_is_native_for_decode_rows_and_prompts_or_for_neither(num_heads: int) -> None:
    store = store_of(Shape(num_heads, 1, 8, 16, None), [20], torch.float32)

    with native_kernels("required"):
        plans = plan_decode(store.page_table, [20], store.spec), plan_prefill(store.page_table, [20], [0, 20], store.spec)

    assert [isinstance(plan, NativePlan) for plan in plans] == [num_heads == 96] * 2


def test_sink_queries_are_refused_without_sinks_and_missed_with_them() -> None:
    plain, with_sinks = Shape(4, 2, 16, 16, 20), Shape(4, 2, 16, 16, 20, sinks=4)
    q, out = queries_of(20, plain, torch.float32), torch.empty((20, 64))
    for shape, sink_q in ((plain, q), (with_sinks, None)):
        store = store_of(shape, [20], torch.float32)
        with pytest.raises(ValueError, match=f"this one has {shape.sinks}"):
            prefill_attention(q, store.kv, plan_prefill(store.page_table, [20], [0, 20], store.spec), out, sink_q=sink_q)
        with pytest.raises(ValueError, match=f"this one has {shape.sinks}"):
            decode_attention(q[:1], store.kv, plan_decode(store.page_table, [20], store.spec), out, sink_q=sink_q)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(4, 2, 16, 16, 20, sinks=33), "sinks is 33, it must be from 0 to 32"),
        (Shape(4, 2, 16, 16, 20, sinks=-1), "sinks is -1, it must be from 0 to 32"),
        (Shape(4, 2, 16, 16, None, sinks=4), "sinks need a window"),
        (Shape(2, 2, 16, 16, 20, (0.5, 0.25), sinks=4), "sinks do not go with slopes"),
    ],
)
def test_sinks_that_make_no_sense_are_refused(shape: Shape, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        store_of(shape, [20], torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, *SHAPES_WITH_SINKS])
def test_cuda_attends_as_the_reference_does(shape: Shape, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    use_exact_products()
    store, starts = store_of(shape, ODD_LENGTHS, dtype), list(itertools.accumulate(ODD_LENGTHS, initial=0))
    table, kv = store.page_table.cuda(), moved(store.kv, "cuda")
    q = queries_of(starts[-1], shape, dtype)
    sink_q, ends = sink_queries_of(q, shape), [start - 1 for start in starts[1:]]
    expected = torch.empty((len(q), shape.num_heads * shape.head_dim), dtype=dtype)
    prefilled, decoded = expected.cuda(), expected[ends].cuda()

    on_device = None if sink_q is None else sink_q.cuda()
    prefill_attention(q.cuda(), kv, plan_prefill(table, ODD_LENGTHS, starts, store.spec), prefilled, sink_q=on_device)
    on_device = None if sink_q is None else sink_q[ends].cuda()
    decode_attention(q[ends].cuda(), kv, plan_decode(table, ODD_LENGTHS, store.spec), decoded, sink_q=on_device)

    defined = prefill_reference.plan_prefill(store.page_table, ODD_LENGTHS, starts, store.spec)
    prefill_reference.prefill_attention(q, store.kv, defined, expected, sink_q)
    assert_kernel_close("prefill_attention", prefilled.cpu(), expected)
    assert_kernel_close("decode_attention", decoded.cpu(), expected[ends])
