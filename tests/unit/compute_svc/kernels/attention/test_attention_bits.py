"""What a query gets on a CPU is the same, bit for bit, however it is computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from compute_svc.kernels.decode_attention import decode_attention, plan_decode
from compute_svc.kernels.native import NativeMode
from compute_svc.kernels.prefill_attention import cpu as prefill_cpu
from compute_svc.kernels.prefill_attention import plan_prefill, prefill_attention
from tests.fakes.attention_cases import Shape, Store, queries_of, sink_queries_of, store_of
from tests.fakes.native_kernels import native_kernels

ODD_LENGTHS = [1, 15, 16, 17, 63, 128, 129, 300]
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
GROUPS = [pytest.param(None, id="numbers"), pytest.param(5, id="codes")]
SHAPES = [
    pytest.param(Shape(6, 2, 16, 16, None), id="plain"),
    pytest.param(Shape(1, 1, 8, 16, None), id="one-head"),
    pytest.param(Shape(5, 1, 10, 16, 150), id="narrow-mqa-window"),
    pytest.param(Shape(3, 1, 16, 16, 40, (0.5, 0.25, 0.125)), id="slopes-window"),
    pytest.param(Shape(4, 2, 7, 16, None, (0.5, 0.25, 0.125, 0.01), 2.0), id="odd-heads-slopes-softcap"),
    pytest.param(Shape(6, 2, 16, 16, 20, sinks=4), id="sinks"),
    pytest.param(Shape(8, 4, 9, 16, 150, sinks=32), id="odd-heads-most-sinks"),
    pytest.param(Shape(6, 1, 12, 16, 1, sinks=1), id="one-sink-narrowest-window"),
    pytest.param(Shape(1, 1, 8, 1, 100, None, 1.5, sinks=5), id="sinks-softcap-one-head-one-token-pages"),
    pytest.param(Shape(4, 2, 16, 256, 40, sinks=20), id="sinks-long-pages"),
]


@pytest.fixture(params=["off", "required"])
def kernels(request: pytest.FixtureRequest) -> Iterator[NativeMode]:
    """Whether native kernels compute."""
    mode: NativeMode = request.param
    with native_kernels(mode):
        yield mode


def _prefilled(store: Store, lengths: list[int], q: torch.Tensor, sink_q: torch.Tensor | None, max_score_bytes: int) -> torch.Tensor:
    """[all tokens, num_heads * D]: every request prefilled whole."""
    starts = list(itertools.accumulate(lengths, initial=0))
    out = torch.empty((len(q), store.spec.num_heads * store.spec.head_dim), dtype=q.dtype)
    plan = prefill_cpu.plan_prefill(store.page_table, lengths, starts, store.spec, max_score_bytes=max_score_bytes)
    prefill_cpu.prefill_attention(q, store.kv, plan, out, sink_q)
    return out


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_the_same_decoded_alone_decoded_among_others_or_prefilled(shape: Shape, dtype: torch.dtype, group: int | None) -> None:
    _assert_same_decoded_and_prefilled(shape, dtype, group)


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("group_size", [1, 2, 3, 4])
@pytest.mark.parametrize("head_dim", range(1, 21))
def test_a_row_is_the_same_whatever_the_width_of_its_heads(head_dim: int, group_size: int) -> None:
    for num_kv_heads in (1, 3, 4):
        _assert_same_decoded_and_prefilled(Shape(num_kv_heads * group_size, num_kv_heads, head_dim, 16, None), torch.float32)


def _assert_same_decoded_and_prefilled(shape: Shape, dtype: torch.dtype, group: int | None = None) -> None:
    store = store_of(shape, ODD_LENGTHS, dtype if group is None else torch.int8, group=group)
    q = queries_of(sum(ODD_LENGTHS), shape, dtype)
    sink_q = sink_queries_of(q, shape)
    ends = [start - 1 for start in itertools.accumulate(ODD_LENGTHS)]
    expected = torch.empty((len(q), shape.num_heads * shape.head_dim), dtype=dtype)
    starts = list(itertools.accumulate(ODD_LENGTHS, initial=0))
    prefill_attention(q, store.kv, plan_prefill(store.page_table, ODD_LENGTHS, starts, store.spec), expected, sink_q=sink_q)
    expected = expected[ends]
    decoded = torch.empty_like(expected)

    decode_attention(
        q[ends],
        store.kv,
        plan_decode(store.page_table, ODD_LENGTHS, store.spec),
        decoded,
        sink_q=None if sink_q is None else sink_q[ends],
    )

    assert torch.equal(decoded, expected)
    for request, (length, end) in enumerate(zip(ODD_LENGTHS, ends, strict=True)):
        alone = torch.empty_like(expected[:1])
        plan = plan_decode(store.page_table[request : request + 1], [length], store.spec)
        decode_attention(q[end : end + 1], store.kv, plan, alone, sink_q=None if sink_q is None else sink_q[end : end + 1])
        assert torch.equal(alone[0], expected[request])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_the_same_however_few_queries_are_computed_at_once(shape: Shape, dtype: torch.dtype) -> None:
    store = store_of(shape, ODD_LENGTHS, dtype)
    q = queries_of(sum(ODD_LENGTHS), shape, dtype)
    sink_q = sink_queries_of(q, shape)
    whole = _prefilled(store, ODD_LENGTHS, q, sink_q, 1 << 30)
    row_bytes = 4 * shape.num_heads * 320
    for queries in (1, 8, 32):
        assert torch.equal(_prefilled(store, ODD_LENGTHS, q, sink_q, queries * row_bytes), whole)


def test_the_scores_of_a_long_context_stay_within_their_bound() -> None:
    shape = Shape(32, 8, 128, 16, None)
    length, bound = 131_072, 128 << 20
    store = store_of(shape._replace(head_dim=1), [1], torch.float32)
    page_table = torch.zeros((1, length // 16), dtype=torch.int64)
    plan = prefill_cpu.plan_prefill(page_table, [length], [0, 512], store.spec)
    (request,) = plan.requests
    sizes = [(block.rows.stop - block.rows.start) * 32 * (block.tokens.stop - block.tokens.start) * 4 for block in request.blocks]
    assert max(sizes) <= bound
    assert len(sizes) == 64
    assert [block.rows.start for block in request.blocks] == list(range(0, 512, 8))
    plan = prefill_cpu.plan_prefill(page_table, [2048], [0, 512], store.spec)
    assert len(plan.requests[0].blocks) == 8, "and where they are small, blocks are large"
