"""Attention of any queries on a device, with torch's own operations: blocks of queries and the pages they see, many requests at once.

A block is some consecutive queries of one request: a decode row is a block of one. Blocks of about equal size are a bucket, and of a bucket
all pages are gathered in one operation, all scores computed in another, and so on: in a layer nothing goes request by request. What is
gathered from where, and what is hidden from whom, is worked out once for all layers; the host sends a few numbers for each block in one
copy, and the device derives the rest from them and the page table.

Promised: queries and KV are multiplied in their own dtype if that is one, else in float32, which codes are decoded to; scores, softmax and all
sums are float32, and the softmax's weights are rounded to the values' dtype before they are multiplied. Not promised: equal bits whatever the batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.buckets import bucketed
from compute_svc.kernels.attention.kv_chunks import distances_of, slope_bias, slopes_of
from compute_svc.kernels.host.host_copy import to_device
from compute_svc.kernels.paged_kv.kv_codes import decode
from compute_svc.kernels.paged_kv.kv_layer import KvLayer

# Gathered KV, counted as float32, and scores of one bucket, unless one block of the fewest queries alone has more. With what is computed from
# them a layer needs up to about three times as much.
_MAX_BUCKET_BYTES = 256 << 20

# Reading this much more than needed costs about what the launches of another bucket do.
_MAX_PADDING_BYTES = 32 << 20

# Queries of a block: more of them share what is gathered, fewer have smaller scores where the context is long.
_MAX_BLOCK_TOKENS = 256
_MIN_BLOCK_TOKENS = 16


class _Block(NamedTuple):
    """Some consecutive queries of a request and the pages, but for sinks, that they see.

    Attributes:
        request: Its row in the page table.
        first_row: Flat row of the first query.
        num_queries: How many.
        first_position: Position of the first query, counted from its request's length.
        first_place: Where in the request's row of the page table the pages begin.
        num_places: How many pages.
    """

    request: int
    first_row: int
    num_queries: int
    first_position: int
    first_place: int
    num_places: int


@dataclass(frozen=True, slots=True, eq=False)
class _Bucket:
    """B blocks, filled up to Q queries and K tokens each.

    Attributes:
        size: B.
        rows: [B * Q] int64, flat rows of the queries; what fills up a block repeats its last.
        pages: [B * pages of a block] int64; what fills up a block repeats its last. With sinks their pages come first.
        bias: [1, B, Q, 1, K] float32: 0 where the query sees, -inf elsewhere.
        distances: [1, B, Q or 1, 1, K] float32, from `distances_of`; None if distance does not count.
        kept: [n] int64, which of the B * Q queries are no filling; None = all.
        kept_rows: [n] int64, their flat rows.
    """

    size: int
    rows: torch.Tensor
    pages: torch.Tensor
    bias: torch.Tensor
    distances: torch.Tensor | None
    kept: torch.Tensor | None
    kept_rows: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class GatheredPlan:
    """What is computed together; slopes [kv_heads, 1, 1, group_size, 1] float32, None if there are none."""

    buckets: tuple[_Bucket, ...]
    spec: AttentionSpec
    slopes: torch.Tensor | None


def plan_gathered(
    page_table: torch.Tensor,
    kv_lengths: Sequence[int],
    query_starts: Sequence[int],
    spec: AttentionSpec,
    *,
    max_bucket_bytes: int = _MAX_BUCKET_BYTES,
) -> GatheredPlan:
    """What all layers of a step share. Arguments as `plan_prefill` has them; decode rows are queries of one row each.

    Args:
        max_bucket_bytes: Most memory for a bucket's gathered KV and scores, as long as a block need not have fewer than 16 queries for it.
    """
    by_width: dict[int, list[_Block]] = defaultdict(list)
    for block in _blocks(kv_lengths, query_starts, spec, max_bucket_bytes):
        by_width[_width(block.num_queries)].append(block)
    groups: list[tuple[int, list[_Block]]] = []
    for width, blocks in by_width.items():
        page_bytes = spec.page_size_tokens * _token_bytes(width, spec)
        places = [block.num_places for block in blocks]
        for members in bucketed(places, _MAX_PADDING_BYTES // page_bytes, max_bucket_bytes // page_bytes):
            groups.append((width, [blocks[member] for member in members]))
    sent = to_device(
        [array for width, blocks in groups for array in (np.array(blocks, dtype=np.int64), _kept(width, blocks))], page_table.device
    )
    buckets = tuple(
        _bucket(page_table, width, max(block.num_places for block in blocks), columns, kept, spec)
        for (width, blocks), columns, kept in zip(groups, sent[::2], sent[1::2], strict=True)
    )
    slopes = slopes_of(spec, page_table.device)
    return GatheredPlan(buckets, spec, None if slopes is None else slopes[:, None, None, :, None])


def _blocks(kv_lengths: Sequence[int], query_starts: Sequence[int], spec: AttentionSpec, max_bytes: int) -> Iterator[_Block]:
    """Every request's queries in blocks, as large as they may be."""
    size = spec.page_size_tokens
    for request, length in enumerate(kv_lengths):
        row, end_row = query_starts[request : request + 2]
        first_seen = spec.first_visible(length - (end_row - row))
        step = _MAX_BLOCK_TOKENS
        while step > _MIN_BLOCK_TOKENS and (length - first_seen) * _token_bytes(step, spec) > max_bytes:
            step //= 2
        for start in range(row, end_row, step):
            count = min(step, end_row - start)
            position = length - (end_row - start)
            place = spec.first_visible(position) // size
            yield _Block(request, start, count, position, place, (position + count - 1) // size + 1 - place)


def _width(num_queries: int) -> int:
    """How many queries a block is filled up to."""
    return 1 << (num_queries - 1).bit_length()


def _token_bytes(width: int, spec: AttentionSpec) -> int:
    """What a block of some queries needs in memory for every token it sees."""
    return 4 * (2 * spec.num_kv_heads * spec.head_dim + spec.num_heads * width)


def _kept(width: int, blocks: Sequence[_Block]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which of all blocks' queries are no filling; empty if none is filled up."""
    counts = np.array([block.num_queries for block in blocks])
    if (counts == width).all():
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.arange(width) < counts[:, None])


def _bucket(
    page_table: torch.Tensor, width: int, num_places: int, blocks: torch.Tensor, kept: torch.Tensor, spec: AttentionSpec
) -> _Bucket:
    """Derives a bucket on the device.

    Args:
        blocks: [B, 6] int64, the attributes of `_Block`.
        kept: From `_kept`.
    """
    device, size = page_table.device, spec.page_size_tokens
    request, first_row, num_queries, first_position, first_place, _ = blocks[:, :, None].unbind(1)  # [B, 1] each
    offsets = torch.minimum(torch.arange(width, device=device), num_queries - 1)
    rows = (first_row + offsets).view(-1)
    places = first_place + torch.arange(num_places, device=device)
    if spec.sinks:
        places = torch.cat((torch.arange(_sink_places(spec), device=device).expand(len(blocks), -1), places), dim=1)
    last_place = (first_position + num_queries - 1) // size
    entries = request * page_table.shape[1] + torch.minimum(places, last_place)
    keys = (places[:, :, None] * size + torch.arange(size, device=device)).view(len(blocks), 1, -1)  # [B, 1, K]
    distances = keys - (first_position + offsets)[:, :, None]  # [B, Q, K], 0 or less where a query sees
    bias = torch.zeros(distances.shape, device=device).masked_fill_(_hidden(keys, distances, spec), -math.inf)
    return _Bucket(
        size=len(blocks),
        rows=rows,
        pages=page_table.reshape(-1).index_select(0, entries.view(-1)),
        bias=bias[None, :, :, None],
        distances=None if spec.slopes is None else distances_of((first_position + offsets)[:, :, None], keys, spec)[None, :, :, None],
        kept=kept if len(kept) else None,
        kept_rows=rows.index_select(0, kept) if len(kept) else rows,
    )


def _sink_places(spec: AttentionSpec) -> int:
    return -(-spec.sinks // spec.page_size_tokens)


def _hidden(keys: torch.Tensor, distances: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """[B, Q, K] bool, which tokens a query does not see, for positions [B, 1, K] and distances [B, Q, K]."""
    if spec.window is None:
        return distances > 0
    outside = distances <= -spec.window
    if spec.sinks:
        # The pages of sinks are there for the sinks alone, and where the others show them again they do not count.
        is_sink = keys < spec.sinks
        in_section = torch.arange(keys.shape[2], device=keys.device) < _sink_places(spec) * spec.page_size_tokens
        outside = torch.where(in_section, ~is_sink, is_sink | outside)
    return outside | (distances > 0)


def gathered_attention(
    q: torch.Tensor,
    kv: KvLayer,
    plan: GatheredPlan,
    out: torch.Tensor,
    sink_q: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
) -> None:
    """Attention of a plan's queries; arguments as `prefill_attention` has them.

    Effects: writes out's rows of the plan's queries.
    """
    spec = plan.spec
    for bucket in plan.buckets:
        gathered = _gather(kv, bucket.pages).view(2, spec.num_kv_heads * bucket.size, -1, spec.head_dim)
        keys, values = gathered[0].transpose(1, 2), gathered[1]
        scores = _product(_grouped(q, bucket, spec), keys)
        if sink_q is not None:
            section = _sink_places(spec) * spec.page_size_tokens
            scores[:, :, :section] = _product(_grouped(sink_q, bucket, spec), keys[:, :, :section])
        scores = _biased(scores, bucket, plan)
        if sink_logits is not None:
            of_rows = sink_logits.view(spec.num_kv_heads, 1, -1).expand(-1, bucket.size * scores.shape[1] // spec.group_size, -1)
            scores = torch.cat((scores, of_rows.reshape(*scores.shape[:2], 1)), dim=2)
        weights = torch.softmax(scores, dim=-1)[:, :, : values.shape[1]].to(values.dtype)
        result = _product(weights, values).view(spec.num_kv_heads, bucket.size, -1, spec.group_size, spec.head_dim)
        rows = result.permute(1, 2, 0, 3, 4).reshape(len(bucket.rows), -1).to(out.dtype)
        out.index_copy_(0, bucket.kept_rows, rows if bucket.kept is None else rows.index_select(0, bucket.kept))


def _gather(kv: KvLayer, pages: torch.Tensor) -> torch.Tensor:
    """[2 * kv_heads, n, page_size, D], the numbers of n pages."""
    if kv.scales is None:
        return kv.data.index_select(1, pages)
    # As integers: what copies float8 by index is not on every device.
    codes = kv.data.view(torch.int8).index_select(1, pages).view(kv.data.dtype)
    return decode(codes, kv.scales.index_select(1, pages), kv.group)


def _grouped(q: torch.Tensor, bucket: _Bucket, spec: AttentionSpec) -> torch.Tensor:
    """[kv_heads * B, Q * group_size, D]: queries that meet the same keys, side by side."""
    queries = q.index_select(0, bucket.rows).view(bucket.size, -1, spec.num_kv_heads, spec.group_size, spec.head_dim)
    return queries.permute(2, 0, 1, 3, 4).reshape(spec.num_kv_heads * bucket.size, -1, spec.head_dim)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [N, M, K] times b [N, K, L]: [N, M, L] float32, summed in float32 whatever their dtypes."""
    if torch.float32 in (a.dtype, b.dtype) or a.device.type == "cpu":  # a CPU has no such product of bfloat16
        return torch.bmm(a.float(), b.float())
    return torch.bmm(a, b, out_dtype=torch.float32)


def _biased(scores: torch.Tensor, bucket: _Bucket, plan: GatheredPlan) -> torch.Tensor:
    """[kv_heads * B, Q * group_size, K]: scores, scaled and capped, less the price of distance, -inf where hidden."""
    spec = plan.spec
    split = scores.view(spec.num_kv_heads, bucket.size, -1, spec.group_size, scores.shape[2])
    if spec.softcap is None:
        split = torch.add(bucket.bias, split, alpha=spec.scale)
    else:
        split = split.mul_(spec.scale / spec.softcap).tanh_().mul_(spec.softcap).add_(bucket.bias)
    if plan.slopes is not None and bucket.distances is not None:
        split.add_(slope_bias(plan.slopes, bucket.distances, spec))
    return split.view(scores.shape)
