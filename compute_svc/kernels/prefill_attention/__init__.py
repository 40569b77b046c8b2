"""Attention of prefill chunks: many queries per request, each over the KV up to itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.gathered_attention import GatheredPlan, gathered_attention, plan_gathered
from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.native import native_library
from compute_svc.kernels.native.attention import NativePlan, covers, native_attention, plan_native
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.prefill_attention import cpu, triton_plan
from compute_svc.kernels.prefill_attention.triton_plan import TritonPrefillPlan

PrefillPlan = cpu.PrefillPlan | GatheredPlan | NativePlan | TritonPrefillPlan


def plan_prefill(page_table: torch.Tensor, kv_lengths: Sequence[int], query_starts: Sequence[int], spec: AttentionSpec) -> PrefillPlan:
    """What all layers of a step share, computed once.

    Args:
        page_table: [R, max_pages] int64 on the store's device.
        kv_lengths: R lengths, the queries' own tokens included.
        query_starts: R + 1 cumulative query lengths; request r's queries are its last tokens.
        spec: The model's attention.

    Raises:
        IndexError: On a CPU, a request's pages are not in the store, or too few for its tokens; torch's own operations raise it later.
    """
    device = page_table.device
    if prefills_by_kernel(spec, device):
        return triton_plan.plan_triton(page_table, kv_lengths, query_starts, spec)
    if device.type == "cpu":
        library = native_library()
        if library is not None and covers(spec):
            return plan_native(library, page_table, kv_lengths, query_starts, spec)
        return cpu.plan_prefill(page_table, kv_lengths, query_starts, spec)
    return plan_gathered(page_table, kv_lengths, query_starts, spec)


def prefills_by_kernel(spec: AttentionSpec, device: torch.device) -> bool:
    """Whether a Triton kernel computes this attention there."""
    has_triton = device.type != "cpu" and triton_plan.covers(spec, device)
    return backend_for("prefill_attention", device.type, has_triton=has_triton) == "triton"


def prefill_attention(
    q: torch.Tensor,
    kv: KvLayer,
    plan: PrefillPlan,
    out: torch.Tensor,
    *,
    sink_q: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
) -> None:
    """softmax(q k^T * scale) v, causal, summed in float32; on a CPU all of it is float32.

    Args:
        q: [T, num_heads, D], floating, any strides: rows query_starts[r] to query_starts[r + 1] are request r's.
        kv: One layer. Slots past a request's end in its last page must be finite; nothing else that the page table does not name is read.
        plan: From `plan_prefill`.
        out: [T, num_heads * D], q's dtype.
        sink_q: As q, what stands for the queries before the keys of sinks; None where the layer has no sinks.
        sink_logits: [num_heads] float32, a learnt score of nothing: it takes its share of every query's weights; None = there are none.

    Effects: writes out's rows query_starts[0] to query_starts[R].

    Raises:
        ValueError: sink_q is given without sinks, or lacks with them; or sink_logits come with sinks.
    """
    if (sink_q is not None) != (plan.spec.sinks > 0):
        raise ValueError(f"sink_q is for layers with sinks, and only for them; this one has {plan.spec.sinks}")
    if sink_logits is not None and plan.spec.sinks:
        raise ValueError("sink_logits do not go with sinks")
    if isinstance(plan, NativePlan):
        native_attention(q, kv, plan, out, sink_q, sink_logits)
    elif isinstance(plan, cpu.PrefillPlan):
        cpu.prefill_attention(q, kv, plan, out, sink_q, sink_logits)
    elif isinstance(plan, TritonPrefillPlan):
        from compute_svc.kernels.prefill_attention import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        triton_kernel.prefill_attention(q, kv, plan, out, sink_logits)
    else:
        gathered_attention(q, kv, plan, out, sink_q, sink_logits)
