"""Attention of decode rows: one query per request over all of its KV."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compute_svc.kernels.attention_spec import AttentionSpec
from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.decode_attention import cpu
from compute_svc.kernels.gathered_attention import GatheredPlan, gathered_attention, plan_gathered
from compute_svc.kernels.kv_layer import KvLayer
from compute_svc.kernels.native import native_library
from compute_svc.kernels.native.attention import NativePlan, covers, native_attention, plan_native

DecodePlan = cpu.DecodePlan | GatheredPlan | NativePlan


def plan_decode(page_table: torch.Tensor, kv_lengths: Sequence[int], spec: AttentionSpec) -> DecodePlan:
    """What all layers of a step share, computed once.

    Args:
        page_table: [R, max_pages] int64 on the store's device, R at least 1.
        kv_lengths: R lengths, the query's own token included.
        spec: The model's attention.

    Raises:
        IndexError: On a CPU, a request's pages are not in the store, or too few for its tokens; torch's own operations raise it later.
    """
    if backend_for("decode_attention", page_table.device.type) == "cpu":
        library = native_library()
        if library is not None and covers(spec):
            return plan_native(library, page_table, kv_lengths, range(len(kv_lengths) + 1), spec)
        return cpu.plan_decode(page_table, kv_lengths, spec)
    return plan_gathered(page_table, kv_lengths, range(len(kv_lengths) + 1), spec)


def decode_attention(
    q: torch.Tensor,
    kv: KvLayer,
    plan: DecodePlan,
    out: torch.Tensor,
    *,
    sink_q: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
) -> None:
    """softmax(q k^T * scale) v for each request's newest token, summed in float32; on a CPU all of it is float32.

    Args:
        q: [R, num_heads, D], floating, any strides.
        kv: One layer. Slots past a request's end in its last page must be finite; nothing else that the page table does not name is read.
        plan: From `plan_decode`.
        out: [R, num_heads * D], q's dtype.
        sink_q: As q, what stands for the queries before the keys of sinks; None where the layer has no sinks.
        sink_logits: [num_heads] float32, a learnt score of nothing: it takes its share of every query's weights; None = there are none.

    Effects: writes out.

    Raises:
        ValueError: sink_q is given without sinks, or lacks with them; or sink_logits come with sinks.
    """
    if (sink_q is not None) != (plan.spec.sinks > 0):
        raise ValueError(f"sink_q is for layers with sinks, and only for them; this one has {plan.spec.sinks}")
    if sink_logits is not None and plan.spec.sinks:
        raise ValueError("sink_logits do not go with sinks")
    if isinstance(plan, NativePlan):
        native_attention(q, kv, plan, out, sink_q, sink_logits)
    elif isinstance(plan, cpu.DecodePlan):
        cpu.decode_attention(q, kv, plan, out, sink_q, sink_logits)
    else:
        gathered_attention(q, kv, plan, out, sink_q, sink_logits)
