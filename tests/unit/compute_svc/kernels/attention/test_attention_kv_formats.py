"""Attention over KV that is stored otherwise than queries are: codes in groups, and numbers of another dtype."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch

from compute_svc.kernels.attention.gathered_attention import gathered_attention, plan_gathered
from compute_svc.kernels.decode_attention import cpu as decode_cpu
from compute_svc.kernels.exact_products import use_exact_products
from compute_svc.kernels.kv_write import kv_write
from compute_svc.kernels.native.attention import native_attention, plan_native
from compute_svc.kernels.paged_kv.kv_codes import decode
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.prefill_attention import cpu as prefill_cpu
from compute_svc.kernels.prefill_attention import reference
from tests.fakes.attention_cases import Shape, Store, moved, queries_of, sink_queries_of, store_of
from tests.fakes.kernel_closeness import assert_kernel_close
from tests.fakes.native_libraries import native_libraries

LENGTHS = [1, 15, 16, 17, 63, 129]
STARTS = list(itertools.accumulate(LENGTHS, initial=0))
LAST = [end - 1 for end in STARTS[1:]]
BACKENDS = ["cpu", "native", "aten"]
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
CODES = [
    pytest.param(torch.int8, 8, id="int8-g8"),
    pytest.param(torch.int8, 12, id="int8-last-group-narrower"),
    pytest.param(torch.int8, 16, id="int8-whole-heads"),
    pytest.param(torch.float8_e4m3fn, 16, id="fp8"),
]
SHAPES = [
    pytest.param(Shape(8, 2, 16, 16, None), id="gqa"),
    pytest.param(Shape(3, 1, 16, 24, 40, (0.5, 0.25, 0.125), 1.5), id="slopes-softcap-window-odd-pages"),
    pytest.param(Shape(6, 2, 16, 16, 20, sinks=4), id="sinks"),
]


class Attended(NamedTuple):
    """What every query of all prompts gets, and the last of each as a decode row."""

    prefilled: torch.Tensor
    decoded: torch.Tensor


def attend(backend: str, q: torch.Tensor, sink_q: torch.Tensor | None, store: Store) -> Attended:
    prefilled = torch.full((len(q), store.spec.num_heads * store.spec.head_dim), torch.nan, dtype=q.dtype, device=q.device)
    decoded = torch.full_like(prefilled[LAST], torch.nan)
    last_q, last_sink_q = q[LAST], None if sink_q is None else sink_q[LAST]
    table, spec = store.page_table, store.spec
    if backend == "native":
        library = native_libraries()[0]
        native_attention(q, store.kv, plan_native(library, table, LENGTHS, STARTS, spec), prefilled, sink_q)
        native_attention(last_q, store.kv, plan_native(library, table, LENGTHS, range(len(LENGTHS) + 1), spec), decoded, last_sink_q)
    elif backend == "cpu":
        prefill_cpu.prefill_attention(q, store.kv, prefill_cpu.plan_prefill(table, LENGTHS, STARTS, spec), prefilled, sink_q)
        decode_cpu.decode_attention(last_q, store.kv, decode_cpu.plan_decode(table, LENGTHS, spec), decoded, last_sink_q)
    else:
        rows: Sequence[int] = range(len(LENGTHS) + 1)
        gathered_attention(q, store.kv, plan_gathered(table, LENGTHS, STARTS, spec), prefilled, sink_q)
        gathered_attention(last_q, store.kv, plan_gathered(table, LENGTHS, rows, spec), decoded, last_sink_q)
    return Attended(prefilled, decoded)


def defined(q: torch.Tensor, sink_q: torch.Tensor | None, store: Store) -> torch.Tensor:
    """What the reference makes of it, in float32."""
    out = torch.empty((len(q), store.spec.num_heads * store.spec.head_dim))
    reference.prefill_attention(q, store.kv, reference.plan_prefill(store.page_table, LENGTHS, STARTS, store.spec), out, sink_q)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("codes", "group"), CODES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_over_codes_is_attention_over_the_numbers_they_stand_for(
    shape: Shape, backend: str, codes: torch.dtype, group: int, dtype: torch.dtype
) -> None:
    if backend == "native" and codes != torch.int8:
        pytest.skip("CPUs store no fp8")
    store = store_of(shape, LENGTHS, codes, group=group)
    assert store.kv.scales is not None
    numbers = store._replace(kv=KvLayer(decode(store.kv.data, store.kv.scales, group)))
    q = queries_of(STARTS[-1], shape, dtype)
    sink_q = sink_queries_of(q, shape)

    over_codes, over_numbers = (attend(backend, q, sink_q, one) for one in (store, numbers))

    assert torch.equal(over_codes.prefilled, over_numbers.prefilled) and torch.equal(over_codes.decoded, over_numbers.decoded)
    expected = defined(q, sink_q, store)
    assert torch.equal(expected, defined(q, sink_q, numbers))
    assert_kernel_close("prefill_attention", over_codes.prefilled, expected.to(dtype))
    assert_kernel_close("decode_attention", over_codes.decoded, expected[LAST].to(dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("codes", "group"), CODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_cuda_writes_the_codes_of_a_cpu_and_attends_over_them_as_the_reference_does(
    shape: Shape, codes: torch.dtype, group: int, dtype: torch.dtype
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    use_exact_products()
    store = store_of(shape, LENGTHS, codes, group=group)
    q = queries_of(STARTS[-1], shape, dtype)
    sink_q = sink_queries_of(q, shape)
    on_device = Store(moved(store.kv, "cuda"), store.page_table.cuda(), store.spec)
    heads, _, size, width = store.kv.data.shape
    rows, slots = torch.randn((size, heads, width)).to(dtype), torch.randperm(size)
    for kv in (store.kv, on_device.kv):
        kv_write(kv, slots.to(kv.device), rows.to(kv.device))

    attended = attend("aten", q.cuda(), None if sink_q is None else sink_q.cuda(), on_device)

    expected = defined(q, sink_q, store)
    assert torch.equal(on_device.kv.data.cpu().view(torch.int8), store.kv.data.view(torch.int8))
    assert_kernel_close("prefill_attention", attended.prefilled.cpu(), expected.to(dtype))
    assert_kernel_close("decode_attention", attended.decoded.cpu(), expected[LAST].to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("stored", "asked"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_queries_may_have_another_dtype_than_the_store(backend: str, stored: torch.dtype, asked: torch.dtype) -> None:
    shape = Shape(4, 2, 16, 16, None)
    store, q = store_of(shape, LENGTHS, stored), queries_of(STARTS[-1], shape, asked)

    attended, expected = attend(backend, q, None, store), defined(q, None, store)

    for found, wanted in ((attended.prefilled, expected), (attended.decoded, expected[LAST])):
        torch.testing.assert_close(found.float(), wanted, rtol=1.6e-2, atol=1.6e-2)
