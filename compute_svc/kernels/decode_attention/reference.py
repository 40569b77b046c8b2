"""Each request by itself, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.kv_chunks import distances_of, slope_bias, slopes_of
from compute_svc.kernels.paged_kv.kv_layer import KvLayer


@dataclass(frozen=True, slots=True, eq=False)
class DecodePlan:
    """The arguments, kept."""

    page_table: torch.Tensor
    kv_lengths: tuple[int, ...]
    spec: AttentionSpec


def plan_decode(page_table: torch.Tensor, kv_lengths: Sequence[int], spec: AttentionSpec) -> DecodePlan:
    """See the public function."""
    return DecodePlan(page_table, tuple(kv_lengths), spec)


def decode_attention(
    q: torch.Tensor,
    kv: KvLayer,
    plan: DecodePlan,
    out: torch.Tensor,
    sink_q: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
) -> None:
    """See the public function."""
    spec = plan.spec
    for request, length in enumerate(plan.kv_lengths):
        first = spec.first_visible(length - 1)
        sinks = torch.arange(min(spec.sinks, first), device=kv.device)
        positions = torch.cat((sinks, torch.arange(first, length, device=kv.device)))
        pages = plan.page_table[request, positions // spec.page_size_tokens]
        rows = kv.read(pages, positions % spec.page_size_tokens)
        keys, values = rows.repeat_interleave(spec.group_size, dim=0).view(2, spec.num_heads, *rows.shape[1:])
        scores = (keys * q[request].float()[:, None]).sum(-1) * spec.scale
        if sink_q is not None:
            scores = torch.where(positions < spec.sinks, (keys * sink_q[request].float()[:, None]).sum(-1) * spec.scale, scores)
        if spec.softcap is not None:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        if (slopes := slopes_of(spec, kv.device)) is not None:
            scores += slope_bias(slopes.view(-1, 1), distances_of(torch.tensor(length - 1), positions, spec), spec)
        if sink_logits is not None:
            scores = torch.cat((scores, sink_logits[:, None]), dim=-1)
        weights = torch.softmax(scores, dim=-1)[:, : len(positions)]
        out[request] = (weights[:, :, None] * values).sum(1).view(-1).to(out.dtype)
