"""Attention of decode rows: one query per request over all of its KV."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.gathered_attention import GatheredPlan, gathered_attention, plan_gathered
from compute_svc.kernels.backend import backend_for, is_batch_invariant
from compute_svc.kernels.decode_attention import cpu, triton_plan
from compute_svc.kernels.decode_attention.triton_plan import TritonDecodePlan
from compute_svc.kernels.host.host_copy import to_device
from compute_svc.kernels.native import native_library
from compute_svc.kernels.native.attention import NativePlan, covers, native_attention, plan_native
from compute_svc.kernels.paged_kv.kv_layer import KvLayer

DecodePlan = cpu.DecodePlan | GatheredPlan | NativePlan | TritonDecodePlan


def plan_decode(
    page_table: torch.Tensor, kv_lengths: Sequence[int], spec: AttentionSpec, *, fixed_split_tokens: int | None = None
) -> DecodePlan:
    """What all layers of a step share, computed once.

    Args:
        page_table: [R, max_pages] int64 on the store's device, R at least 1.
        kv_lengths: R lengths, the query's own token included.
        spec: The model's attention.
        fixed_split_tokens: For the Triton kernel, see `plan_decode_on_device`; on a CPU bits are equal anyway.

    Raises:
        IndexError: On a CPU, a request's pages are not in the store, or too few for its tokens; torch's own operations raise it later, and the
            Triton kernel is not told of pages that are not in the store.
    """
    device = page_table.device
    if decodes_on_device(spec, device):
        longest = max(kv_lengths)
        if longest > page_table.shape[1] * spec.page_size_tokens:
            raise IndexError(f"a page table of {page_table.shape[1]} pages is too short for {longest} tokens")
        (lengths,) = to_device([np.array(kv_lengths, dtype=np.int64)], device)
        return plan_decode_on_device(page_table, lengths, longest, spec, fixed_split_tokens=fixed_split_tokens)
    if device.type == "cpu":
        library = native_library()
        if library is not None and covers(spec):
            return plan_native(library, page_table, kv_lengths, range(len(kv_lengths) + 1), spec)
        return cpu.plan_decode(page_table, kv_lengths, spec)
    return plan_gathered(page_table, kv_lengths, range(len(kv_lengths) + 1), spec)


def decodes_on_device(spec: AttentionSpec, device: torch.device) -> bool:
    """Whether `plan_decode_on_device` plans this attention there: where a Triton kernel computes it."""
    has_triton = device.type != "cpu" and triton_plan.covers(spec, device)
    return backend_for("decode_attention", device.type, has_triton=has_triton) == "triton"


def plan_decode_on_device(
    page_table: torch.Tensor, kv_lengths: torch.Tensor, max_kv_tokens: int, spec: AttentionSpec, *, fixed_split_tokens: int | None = None
) -> TritonDecodePlan:
    """As `plan_decode`, from lengths that only the device knows: launches depend on nothing else of it than R and a bound, and may be recorded.

    Args:
        page_table: [R, max_pages] int64, R at least 1. Read again by each layer.
        kv_lengths: [R] int32 or int64 on the same device, at most max_kv_tokens each; 0 = there is no request, its row of `out` becomes zeros.
        max_kv_tokens: Bound of lengths.
        spec: The model's attention, one that `triton_plan.covers`.
        fixed_split_tokens: A request's tokens are summed in splits that begin at multiples of so many, a multiple of the kernel's tile
            (which 128 is for every model), so that equal requests get equal bits in whatever batch; None = splits are as long as to fill the device,
            or where `backend.is_batch_invariant`, as `triton_plan.invariant_split_tokens` says.

    Raises:
        ValueError: fixed_split_tokens is no multiple of the tile.
    """
    from compute_svc.kernels.decode_attention.splits import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    if fixed_split_tokens is None and is_batch_invariant():
        fixed_split_tokens = triton_plan.invariant_split_tokens(spec)
    return triton_kernel.plan_on_device(page_table, kv_lengths, max_kv_tokens, spec, fixed_split_tokens)


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
    elif isinstance(plan, TritonDecodePlan):
        from compute_svc.kernels.decode_attention import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        triton_kernel.decode_attention(q, kv, plan, out, sink_logits)
    else:
        gathered_attention(q, kv, plan, out, sink_q, sink_logits)
