"""What a CPU engine does that promises nothing about bits: products of just the rows there are, torch's own attention over gathered KV.

It is swapped in for the kernels of the engine, for measurements alone: the engine has no option for it. Only what Llamas need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.gated_linear import cpu as gated_linear_cpu
from compute_svc.kernels.linear import Activation, LinearWeight, RowNorm
from compute_svc.kernels.linear import cpu as linear_cpu
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.layers import attention, mlp
from compute_svc.models import causal_lm, loading
from compute_svc.stored_weights.stored_weight import StoredWeight


@dataclass(frozen=True, slots=True, eq=False)
class _Decode:
    """Every request's pages, as many for each as the longest has, and which of their tokens count.

    Attributes:
        pages: [R * places] int64.
        mask: [R, 1, 1, tokens] of the activations' dtype, 0 or -inf.
    """

    pages: torch.Tensor
    mask: torch.Tensor
    spec: AttentionSpec


@dataclass(frozen=True, slots=True, eq=False)
class _Prefill:
    """Every request's pages, [places] int64 each, and its length and flat rows."""

    pages: tuple[torch.Tensor, ...]
    kv_lengths: tuple[int, ...]
    query_starts: tuple[int, ...]
    spec: AttentionSpec


def plan_decode(page_table: torch.Tensor, kv_lengths: Sequence[int], spec: AttentionSpec) -> _Decode:
    """As the engine's."""
    assert spec.window is None and spec.slopes is None and spec.softcap is None, "only plain attention is there"
    size = spec.page_size_tokens
    lengths = torch.tensor(kv_lengths)
    places = torch.arange(-(-max(kv_lengths) // size))
    # A page past a request's end stands for its last one, whose content is finite.
    pages = page_table.gather(1, torch.minimum(places, ((lengths - 1) // size)[:, None]))
    hidden = torch.arange(len(places) * size) >= lengths[:, None]
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None, None]
    return _Decode(pages.view(-1), mask, spec)


def decode_attention(
    q: torch.Tensor, kv: KvLayer, plan: _Decode, out: torch.Tensor, *, sink_q: torch.Tensor | None, sink_logits: torch.Tensor | None
) -> None:
    """As the engine's, in the KV's dtype: the heads that share keys are queries of one product."""
    assert sink_q is None and sink_logits is None, "only plain attention is there"
    spec, num_requests = plan.spec, len(q)
    keys, values = _gathered(kv, plan.pages, num_requests, spec)
    queries = q.reshape(num_requests, spec.num_kv_heads, spec.group_size, spec.head_dim)
    result = F.scaled_dot_product_attention(queries, keys, values, attn_mask=plan.mask.to(q.dtype), scale=spec.scale)
    out.copy_(result.reshape(num_requests, -1))


def plan_prefill(page_table: torch.Tensor, kv_lengths: Sequence[int], query_starts: Sequence[int], spec: AttentionSpec) -> _Prefill:
    """As the engine's."""
    assert spec.window is None and spec.slopes is None and spec.softcap is None, "only plain attention is there"
    pages = tuple(row[: -(-length // spec.page_size_tokens)] for row, length in zip(page_table, kv_lengths, strict=True))
    return _Prefill(pages, tuple(kv_lengths), tuple(query_starts), spec)


def prefill_attention(
    q: torch.Tensor, kv: KvLayer, plan: _Prefill, out: torch.Tensor, *, sink_q: torch.Tensor | None, sink_logits: torch.Tensor | None
) -> None:
    """As the engine's, in the KV's dtype, one request after the other."""
    assert sink_q is None and sink_logits is None, "only plain attention is there"
    for request, (pages, length) in enumerate(zip(plan.pages, plan.kv_lengths, strict=True)):
        start, end = plan.query_starts[request : request + 2]
        count = end - start
        keys, values = (one[:, :, :length] for one in _gathered(kv, pages, 1, plan.spec))
        queries = q[None, start:end].transpose(1, 2)
        # What is causal without a mask begins at the first key.
        mask = None if count == length else torch.ones((count, length), dtype=torch.bool).tril_(length - count)
        result = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=plan.spec.scale, enable_gqa=True
        )
        out[start:end].copy_(result[0].transpose(0, 1).reshape(count, -1))


def _gathered(kv: KvLayer, pages: torch.Tensor, num_requests: int, spec: AttentionSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the pages, each [R, kv_heads, tokens, D]."""
    rows = kv.data.index_select(1, pages).view(2, spec.num_kv_heads, num_requests, -1, spec.head_dim)
    keys, values = rows.transpose(1, 2).unbind(0)
    return keys, values


def linear(
    x: torch.Tensor,
    weight: LinearWeight,
    *,
    activation: Activation = "none",
    add: torch.Tensor | None = None,
    norm: RowNorm | None = None,
) -> torch.Tensor:
    """As the engine's, of any number of rows."""
    assert norm is None, "torch's products normalise no rows"
    return linear_cpu.linear(x, weight, activation, add)


def gated_linear(
    x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation, *, norm: RowNorm | None = None
) -> torch.Tensor:
    """As the engine's, of any number of rows."""
    assert norm is None, "torch's products normalise no rows"
    return gated_linear_cpu.gated_linear(x, gate, up, activation)


def pack_stored(weight: StoredWeight, bias: torch.Tensor | None, dtype: torch.dtype, activations: str) -> LinearWeight:
    """As the engine's, but the weight stays as it is."""
    return LinearWeight.plain(weight.dense(dtype), bias)


def pack_onednn_stored(weight: StoredWeight, bias: torch.Tensor | None, dtype: torch.dtype, activations: str) -> LinearWeight:
    """The weight in oneDNN's blocks, where it multiplies the dtype."""
    dense = weight.dense(dtype)
    return linear_cpu.pack_onednn(dense, bias) if linear_cpu.onednn_takes(dtype) else LinearWeight.plain(dense, bias)


def _unpadded(num_rows: int, dtype: torch.dtype, device: torch.device) -> int:
    return num_rows


_COMPUTING: tuple[tuple[Any, str, Any], ...] = (
    (causal_lm, "linear", linear),
    (causal_lm, "padded_count", _unpadded),
    (causal_lm, "plan_decode", plan_decode),
    (causal_lm, "plan_prefill", plan_prefill),
    (attention, "linear", linear),
    (attention, "decode_attention", decode_attention),
    (attention, "prefill_attention", prefill_attention),
    (mlp, "linear", linear),
    (mlp, "gated_linear", gated_linear),
    (mlp, "padded_count", _unpadded),
)


@contextmanager
def natural_kernels() -> Iterator[None]:
    """The engine's models compute with these kernels while this lasts."""
    with _swapped(_COMPUTING):
        yield


@contextmanager
def plain_weights() -> Iterator[None]:
    """Models that are built while this lasts keep their weights as they are, for `F.linear`, and not in the engine's layout."""
    with _swapped(((loading, "pack_stored", pack_stored),)):
        yield


@contextmanager
def onednn_weights() -> Iterator[None]:
    """Models that are built while this lasts have their weights in oneDNN's blocks."""
    with _swapped(((loading, "pack_stored", pack_onednn_stored),)):
        yield


@contextmanager
def _swapped(parts: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    before = [(module, name, getattr(module, name)) for module, name, _ in parts]
    for module, name, part in parts:
        setattr(module, name, part)
    try:
        yield
    finally:
        for module, name, part in before:
            setattr(module, name, part)
