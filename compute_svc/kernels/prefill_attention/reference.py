"""Each request by itself with a whole mask, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.kv_chunks import distances_of, slope_bias, slopes_of
from compute_svc.kernels.paged_kv.kv_layer import KvLayer


@dataclass(frozen=True, slots=True, eq=False)
class PrefillPlan:
    """The arguments, kept."""

    page_table: torch.Tensor
    kv_lengths: tuple[int, ...]
    query_starts: tuple[int, ...]
    spec: AttentionSpec


def plan_prefill(page_table: torch.Tensor, kv_lengths: Sequence[int], query_starts: Sequence[int], spec: AttentionSpec) -> PrefillPlan:
    """See the public function."""
    return PrefillPlan(page_table, tuple(kv_lengths), tuple(query_starts), spec)


def prefill_attention(
    q: torch.Tensor,
    kv: KvLayer,
    plan: PrefillPlan,
    out: torch.Tensor,
    sink_q: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
) -> None:
    """See the public function."""
    spec = plan.spec
    for request, length in enumerate(plan.kv_lengths):
        start, end = plan.query_starts[request : request + 2]
        positions = torch.arange(length, device=kv.device)
        pages = plan.page_table[request, positions // spec.page_size_tokens]
        rows = kv.read(pages, positions % spec.page_size_tokens)
        keys, values = rows.repeat_interleave(spec.group_size, dim=0).view(2, spec.num_heads, *rows.shape[1:])
        scores = torch.einsum("qhd,hkd->hqk", q[start:end].float(), keys) * spec.scale
        if sink_q is not None:
            sink_scores = torch.einsum("qhd,hkd->hqk", sink_q[start:end].float(), keys) * spec.scale
            scores = torch.where(positions < spec.sinks, sink_scores, scores)
        if spec.softcap is not None:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        distance = positions[length - (end - start) :, None] - positions
        hidden = distance < 0
        if spec.window is not None:
            hidden |= (distance >= spec.window) & (positions >= spec.sinks)
        if (slopes := slopes_of(spec, kv.device)) is not None:
            scores += slope_bias(
                slopes.view(-1, 1, 1), distances_of(positions[length - (end - start) :, None], positions[None], spec), spec
            )
        scores = scores.masked_fill(hidden, -torch.inf)
        if sink_logits is not None:
            scores = torch.cat((scores, sink_logits[:, None, None].expand(-1, end - start, -1)), dim=-1)
        weights = torch.softmax(scores, dim=-1)[:, :, :length]
        out[start:end] = torch.einsum("hqk,hkd->qhd", weights, values).reshape(end - start, -1).to(out.dtype)
