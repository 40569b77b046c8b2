"""A head's sink logit: one more key with a learnt score and no value, in every backend, with the same bits whatever the batch."""

from __future__ import annotations

import itertools

import pytest
import torch

from compute_svc.kernels.decode_attention import decode_attention, plan_decode
from compute_svc.kernels.decode_attention import reference as decode_reference
from compute_svc.kernels.prefill_attention import plan_prefill, prefill_attention
from compute_svc.kernels.prefill_attention import reference as prefill_reference
from tests.fakes.attention_store import Shape, decode_with, prefill_with, queries_of, store_of
from tests.fakes.kernel_closeness import assert_kernel_close

ODD_LENGTHS = [1, 15, 16, 17, 63, 128, 129, 300]
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
SHAPES = [
    pytest.param(Shape(4, 4, 16, 16, None), id="mha"),
    pytest.param(Shape(8, 2, 16, 16, 20), id="gqa-window"),
    pytest.param(Shape(6, 1, 12, 16, 150, None, 1.5), id="mqa-window-over-a-chunk-softcap"),
    pytest.param(Shape(3, 1, 8, 4, None, (0.5, 0.25, 0.125)), id="mqa-slopes"),
]


def sink_logits_of(shape: Shape) -> torch.Tensor:
    """Some that take nearly nothing and some that take nearly all."""
    return torch.linspace(-2, 4, shape.num_heads)


@pytest.mark.parametrize("shape", SHAPES)
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
        q[0] * store.kv[: shape.num_kv_heads, store.page_table[0, 0], 0].repeat_interleave(shape.num_heads // shape.num_kv_heads, 0)
    ).sum(1)
    score = own * store.spec.scale if shape.softcap is None else shape.softcap * torch.tanh(own * store.spec.scale / shape.softcap)
    decode_reference.decode_attention(q, store.kv, plan, half, None, score)

    assert torch.equal(nothing, without)
    torch.testing.assert_close(half[0], without[0] / 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["cpu", "aten"])
@pytest.mark.parametrize("shape", SHAPES)
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
    if backend == "cpu":
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
