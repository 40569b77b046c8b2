"""Requests of similar length together: gather their pages, then product, softmax and product in float32.

Fixed order of summation per row: see kernels/kv_chunks.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from compute_svc.kernels.attention_spec import AttentionSpec
from compute_svc.kernels.kv_chunks import CHUNK_TOKENS, MIN_MATRICES, group_queries, read_chunks, sum_values, tiles_of_chunks, ungroup

# Padding up to the longest request of a bucket may read this much more than its requests need.
_MAX_PADDING = 1.3

# Keys and values gathered at once, unless one request alone has more.
_MAX_BUCKET_BYTES = 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class _Bucket:
    """Requests that are read with the same number of chunks.

    Attributes:
        rows: [B] int64, which decode rows; None = all of them in order.
        num_rows: B, at least what makes MIN_MATRICES.
        tiles: From `tiles_of_chunks`.
        bias: [kv_heads * B, 1, tokens] float32: 0 where the query sees, -inf elsewhere.
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
    first_chunks = [spec.first_visible(length - 1) // CHUNK_TOKENS for length in kv_lengths]
    counts = [math.ceil(length / CHUNK_TOKENS) - first for length, first in zip(kv_lengths, first_chunks, strict=True)]
    lengths = torch.tensor(kv_lengths, device=page_table.device)
    starts = torch.tensor(first_chunks, device=page_table.device)
    buckets = []
    chunk_bytes = 2 * spec.num_kv_heads * CHUNK_TOKENS * spec.head_dim * 4
    for members in _bucketed(counts, max_chunks=max_bucket_bytes // chunk_bytes):
        if len(members) * spec.num_kv_heads < MIN_MATRICES:
            members = members * MIN_MATRICES
        num_chunks = max(counts[member] for member in members)
        if members == list(range(len(counts))):
            buckets.append(_bucket(None, page_table, starts, lengths, num_chunks, spec))
        else:
            rows = torch.tensor(members, device=page_table.device)
            buckets.append(_bucket(rows, page_table[rows], starts[rows], lengths[rows], num_chunks, spec))
    return DecodePlan(tuple(buckets), spec)


def _bucketed(counts: Sequence[int], max_chunks: int) -> Iterator[list[int]]:
    """Requests by number of chunks, cut where padding to the longest of a bucket would cost too much time or memory."""
    if max(counts) * len(counts) <= min(sum(counts) * _MAX_PADDING, max_chunks):
        yield list(range(len(counts)))
        return
    bucket: list[int] = []
    needed = 0
    for member in sorted(range(len(counts)), key=counts.__getitem__):
        if bucket and counts[member] * (len(bucket) + 1) > min((needed + counts[member]) * _MAX_PADDING, max_chunks):
            yield bucket
            bucket, needed = [], 0
        bucket.append(member)
        needed += counts[member]
    yield bucket


def _bucket(
    rows: torch.Tensor | None,
    page_rows: torch.Tensor,
    first_chunks: torch.Tensor,
    lengths: torch.Tensor,
    num_chunks: int,
    spec: AttentionSpec,
) -> _Bucket:
    tokens = num_chunks * CHUNK_TOKENS
    positions = torch.arange(tokens, device=page_rows.device) + first_chunks[:, None] * CHUNK_TOKENS
    hidden = positions >= lengths[:, None]
    if spec.window is not None:
        hidden |= positions < lengths[:, None] - spec.window
    bias = torch.zeros(hidden.shape, device=page_rows.device).masked_fill_(hidden, -math.inf)
    return _Bucket(
        rows=rows,
        num_rows=len(page_rows),
        tiles=tiles_of_chunks(page_rows, first_chunks, num_chunks, lengths, spec),
        bias=bias.expand(spec.num_kv_heads, -1, -1).reshape(-1, 1, tokens),
    )


def decode_attention(q: torch.Tensor, kv: torch.Tensor, plan: DecodePlan, out: torch.Tensor) -> None:
    """See the public function."""
    spec = plan.spec
    for bucket in plan.buckets:
        members = q if bucket.rows is None else q.index_select(0, bucket.rows)
        queries = group_queries(members[:, None], spec)
        keys, values = read_chunks(kv, bucket.tiles, bucket.num_rows, spec)
        bias = bucket.bias.expand(-1, queries.shape[1], -1)
        scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=spec.scale)
        result = ungroup(sum_values(torch.softmax(scores, dim=-1), values), bucket.num_rows, 1, spec)
        if bucket.rows is None:
            out.view(bucket.num_rows, 1, spec.num_kv_heads, spec.group_size, spec.head_dim).copy_(result)
        else:
            out.index_copy_(0, bucket.rows, result.reshape(bucket.num_rows, -1).to(out.dtype))
