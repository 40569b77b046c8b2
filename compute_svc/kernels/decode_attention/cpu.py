"""Requests of similar length together: gather their pages, then product, softmax and product in float32.

Fixed order of summation per row: see kernels/attention/kv_chunks.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.buckets import bucketed
from compute_svc.kernels.attention.kv_chunks import (
    MIN_MATRICES,
    MIN_QUERY_ROWS,
    READ_TOKENS,
    distances_of,
    find_tiles,
    group_queries,
    read_end,
    read_start,
    read_tiles,
    scores_of,
    slope_bias,
    slopes_of,
    softmax_of,
    sum_values,
    ungroup,
)
from compute_svc.kernels.paged_kv.kv_layer import KvLayer

# Reading this much more than needed costs about what another bucket does.
_MAX_PADDING_BYTES = 1 << 19

# Keys and values gathered at once, unless one request alone has more: they are read again at once, and should still be in a cache then.
_MAX_BUCKET_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class _Bucket:
    """Requests of which the same number of tokens is read.

    Attributes:
        rows: [B] int64, which decode rows; None = all of them in order.
        num_rows: B, at least what makes MIN_MATRICES.
        tiles: From `find_tiles`.
        bias: [kv_heads * B, 1, tokens] float32: 0 where the query sees, -inf elsewhere; with slopes one row for each row of queries,
            less by the distance. With sinks the tokens of the sink section come first.
    """

    rows: torch.Tensor | None
    num_rows: int
    tiles: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DecodePlan:
    """Which requests are read together, and where their pages are."""

    buckets: tuple[_Bucket, ...]
    spec: AttentionSpec


def plan_decode(
    page_table: torch.Tensor, kv_lengths: Sequence[int], spec: AttentionSpec, *, max_bucket_bytes: int = _MAX_BUCKET_BYTES
) -> DecodePlan:
    """See the public function."""
    first_tokens = [read_start(length - 1, spec) for length in kv_lengths]
    num_tokens = [read_end(length) - first for length, first in zip(kv_lengths, first_tokens, strict=True)]
    token_bytes = 2 * spec.num_kv_heads * spec.head_dim * 4
    lengths = torch.tensor(kv_lengths, device=page_table.device)
    starts = torch.tensor(first_tokens, device=page_table.device)
    buckets = []
    for members in bucketed(num_tokens, _MAX_PADDING_BYTES // token_bytes, max_bucket_bytes // token_bytes):
        tokens = max(num_tokens[member] for member in members)
        if len(members) * spec.num_kv_heads < MIN_MATRICES:
            members = members * MIN_MATRICES
        if members == list(range(len(num_tokens))):
            buckets.append(_bucket(None, page_table, starts, lengths, tokens, spec))
        else:
            rows = torch.tensor(members, device=page_table.device)
            buckets.append(_bucket(rows, page_table[rows], starts[rows], lengths[rows], tokens, spec))
    return DecodePlan(tuple(buckets), spec)


def _bucket(
    rows: torch.Tensor | None, page_rows: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, num_tokens: int, spec: AttentionSpec
) -> _Bucket:
    positions = torch.arange(num_tokens, device=page_rows.device) + starts[:, None]
    hidden = positions >= lengths[:, None]
    if spec.window is not None:
        hidden |= positions < lengths[:, None] - spec.window
    if spec.sinks:
        section = torch.arange(READ_TOKENS, device=page_rows.device)
        hidden = torch.cat(((section >= lengths[:, None]) | (section >= spec.sinks), hidden | (positions < spec.sinks)), dim=1)
    bias = torch.zeros(hidden.shape, device=page_rows.device).masked_fill_(hidden, -math.inf)
    slopes = slopes_of(spec, page_rows.device)
    if slopes is None:
        bias = bias.expand(spec.num_kv_heads, -1, -1).reshape(-1, 1, hidden.shape[1])
    else:
        distances = distances_of(lengths[:, None] - 1, positions, spec)
        per_head = slope_bias(slopes[:, None, :, None], distances[:, None], spec) + bias[:, None]  # [kv_heads, B, group, tokens]
        copies = math.ceil(MIN_QUERY_ROWS / spec.group_size)
        bias = per_head.repeat(1, 1, copies, 1).flatten(0, 1)
    return _Bucket(rows, len(page_rows), find_tiles(page_rows, starts, num_tokens, lengths, spec), bias)


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
    for bucket in plan.buckets:
        queries = _queries(q, bucket, spec)
        keys, values = read_tiles(kv, bucket.tiles, bucket.num_rows, spec)
        sink_values = None
        if sink_q is not None:
            sink_scores = scores_of(_queries(sink_q, bucket, spec), keys[:, :READ_TOKENS], spec)
            scores = torch.cat((sink_scores, scores_of(queries, keys[:, READ_TOKENS:], spec)), dim=2).add_(bucket.bias)
            sink_values, values = values[:, :READ_TOKENS], values[:, READ_TOKENS:]
        elif spec.softcap is None and spec.slopes is None:
            bias = bucket.bias.expand(-1, queries.shape[1], -1)
            scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=spec.scale)
        else:
            # Rounded before the sum, as in prefill.
            scores = scores_of(queries, keys, spec).add_(bucket.bias)
        result = ungroup(sum_values(softmax_of(scores, sink_logits, spec), values, sink_values), bucket.num_rows, 1, spec)
        if bucket.rows is None:
            out.view(bucket.num_rows, 1, spec.num_kv_heads, spec.group_size, spec.head_dim).copy_(result)
        else:
            out.index_copy_(0, bucket.rows, result.reshape(bucket.num_rows, -1).to(out.dtype))


def _queries(q: torch.Tensor, bucket: _Bucket, spec: AttentionSpec) -> torch.Tensor:
    members = q if bucket.rows is None else q.index_select(0, bucket.rows)
    return group_queries(members[:, None], spec)
