"""Attention with torch's own operations: what is gathered together, and that it is the reference however it is."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.kernels.attention.gathered_attention import gathered_attention, plan_gathered
from compute_svc.kernels.prefill_attention import reference as prefill_reference
from tests.fakes.attention_cases import Shape, queries_of, sink_queries_of, store_of
from tests.fakes.kernel_closeness import assert_kernel_close


@given(st.data())
def test_gathered_attention_is_the_reference_however_it_is_bucketed(data: st.DataObject) -> None:
    page_size, window = data.draw(st.sampled_from([1, 4, 7, 16])), data.draw(st.none() | st.integers(1, 90))
    sinks = 0 if window is None else data.draw(st.integers(0, 9))
    shape = Shape(4, 2, 8, page_size, window, sinks=sinks)
    lengths = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=6))
    counts = [data.draw(st.integers(1, length)) for length in lengths]
    store, starts = store_of(shape, lengths, torch.float32), list(itertools.accumulate(counts, initial=0))
    q, (out, expected) = queries_of(starts[-1], shape, torch.float32), torch.full((2, starts[-1], 32), torch.nan)
    sink_q = sink_queries_of(q, shape)

    plan = plan_gathered(store.page_table, lengths, starts, store.spec, max_bucket_bytes=data.draw(st.integers(1, 1 << 20)))
    gathered_attention(q, store.kv, plan, out, sink_q)

    defined = prefill_reference.plan_prefill(store.page_table, lengths, starts, store.spec)
    prefill_reference.prefill_attention(q, store.kv, defined, expected, sink_q)
    assert_kernel_close("gathered_attention", out, expected)
    written = torch.cat([bucket.kept_rows for bucket in plan.buckets])
    assert written.sort().values.tolist() == list(range(starts[-1])), "every row is written once"


@pytest.mark.parametrize(("max_bucket_bytes", "sizes"), [(1 << 28, [3]), (2 * 304 * (2 * 2 * 16 + 4) * 4, [1, 2])])
def test_decode_rows_are_gathered_together_as_far_as_memory_goes(max_bucket_bytes: int, sizes: list[int]) -> None:
    shape, lengths = Shape(4, 2, 16, 16, None), [300, 290, 301]
    store = store_of(shape, lengths, torch.float32)

    plan = plan_gathered(store.page_table, lengths, range(4), store.spec, max_bucket_bytes=max_bucket_bytes)

    assert sorted(bucket.size for bucket in plan.buckets) == sizes


@pytest.mark.parametrize(("max_bucket_bytes", "widths"), [(1 << 28, [256, 64]), (1, [16] * 19)])
def test_prompts_are_computed_in_smaller_blocks_where_memory_is_short(max_bucket_bytes: int, widths: list[int]) -> None:
    shape = Shape(4, 2, 16, 16, None)
    store = store_of(shape, [300], torch.float32)

    plan = plan_gathered(store.page_table, [300], [0, 300], store.spec, max_bucket_bytes=max_bucket_bytes)

    assert sorted((bucket.bias.shape[2] for bucket in plan.buckets), reverse=True) == widths


@pytest.mark.parametrize(("sinks", "num_pages"), [(0, 3), (17, 3 + 2)])
def test_pages_before_a_window_are_not_gathered(sinks: int, num_pages: int) -> None:
    """The last 40 of 300 tokens are in 3 pages."""
    store = store_of(Shape(4, 2, 16, 16, 40, sinks=sinks), [300], torch.float32)

    (bucket,) = plan_gathered(store.page_table, [300], [0, 1], store.spec).buckets

    assert len(bucket.pages) == num_pages and bucket.bias.shape[-1] == 16 * num_pages
