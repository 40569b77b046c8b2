"""Request after request: gather its pages once, then blocks of queries against the chunks they can see, in float32.

Fixed order of summation per row: see kernels/attention/kv_chunks.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
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

# Queries of a block, unless the scores of so many over a long context were too large: scores, their softmax and, with slopes, what distance
# takes off are in memory at once. What a query gets does not depend on its block, so the bound changes no bit.
_MAX_BLOCK_TOKENS = 64
_MIN_BLOCK_TOKENS = 4
_MAX_SCORE_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Some consecutive queries of a request.

    Attributes:
        rows: Their flat rows.
        tokens: The part of the request's gathered tokens that any of them sees, and its padding.
        mask: [queries, 1, masked tokens] float32, 0 or -inf, for the last of `tokens`; queries see all before those. With sinks it is
            for the sink section and then all of `tokens`.
        distances: [queries or 1, 1, tokens] float32, from `distances_of`; None if distance does not count.
    """

    rows: slice
    tokens: slice
    mask: torch.Tensor
    distances: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """One request's part of the step: where its tokens are, from the first that any query sees but for sinks, and its queries in blocks."""

    tiles: torch.Tensor
    blocks: tuple[_Block, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PrefillPlan:
    """Where each request's pages are, and what each block of queries sees; slopes as `slopes_of` gives them."""

    requests: tuple[_Request, ...]
    spec: AttentionSpec
    slopes: torch.Tensor | None


def plan_prefill(
    page_table: torch.Tensor,
    kv_lengths: Sequence[int],
    query_starts: Sequence[int],
    spec: AttentionSpec,
    *,
    max_score_bytes: int = _MAX_SCORE_BYTES,
) -> PrefillPlan:
    """See the public function.

    Args:
        max_score_bytes: Most memory for the scores of a block, as long as it need not have fewer than four queries for it.
    """
    requests = []
    for request, length in enumerate(kv_lengths):
        row, end_row = query_starts[request : request + 2]
        origin = read_start(length - (end_row - row), spec)
        start, end = torch.tensor([[origin], [length]], device=page_table.device)
        tiles = find_tiles(page_table[request : request + 1], start, read_end(length) - origin, end, spec)
        size = _block_tokens(read_end(length) - origin, spec, max_score_bytes)
        blocks = _blocks(row, end_row, size, length, origin, spec, page_table.device)
        requests.append(_Request(tiles, tuple(blocks)))
    return PrefillPlan(tuple(requests), spec, slopes_of(spec, page_table.device))


def _block_tokens(num_seen: int, spec: AttentionSpec, max_bytes: int) -> int:
    """How many queries a block has whose queries see so many tokens."""
    size = _MAX_BLOCK_TOKENS
    while size > _MIN_BLOCK_TOKENS and 4 * size * spec.num_heads * num_seen > max_bytes:
        size //= 2
    return size


def _blocks(row: int, end_row: int, size: int, length: int, origin: int, spec: AttentionSpec, device: torch.device) -> Iterator[_Block]:
    """Blocks of `size` of the queries in rows [row, end_row), the last of `length` tokens; gathered tokens start at position `origin`."""
    gathered_from = origin - READ_TOKENS if spec.sinks else origin  # the sink section lies before the rest
    for start in range(row, end_row, size):
        end = min(start + size, end_row)
        first, last = length - (end_row - start), length - (end_row - end) - 1
        seen_from, seen_to = read_start(first, spec), read_end(last + 1)
        # Only the tail of what a block sees differs between its queries, unless a window also cuts the head, or the sinks are hidden there.
        masked_from = first + 1 if not spec.sinks and (spec.window is None or last < spec.window) else seen_from
        hidden = _hidden(torch.arange(first, last + 1, device=device)[:, None], torch.arange(masked_from, seen_to, device=device), spec)
        mask = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -math.inf)
        distances = None
        if spec.slopes is not None:
            keys = torch.arange(seen_from, seen_to, device=device)
            distances = distances_of(torch.arange(first, last + 1, device=device)[:, None], keys[None], spec)[:, None]
        yield _Block(slice(start, end), slice(seen_from - gathered_from, seen_to - gathered_from), mask[:, None], distances)


def _hidden(queries: torch.Tensor, keys: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """[Q, K] for positions [Q, 1] and [K]: which keys a query does not see; with sinks [Q, READ_TOKENS + K], the sink section first."""
    distance = queries - keys
    hidden = distance < 0
    if spec.window is not None:
        hidden |= distance >= spec.window
    if not spec.sinks:
        return hidden
    section = torch.arange(READ_TOKENS, device=keys.device)
    return torch.cat(((section > queries) | (section >= spec.sinks), hidden | (keys < spec.sinks)), dim=1)


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
    for request in plan.requests:
        keys, values = read_tiles(kv, request.tiles, 1, spec)
        for block in request.blocks:
            length = block.rows.stop - block.rows.start
            queries = group_queries(q[None, block.rows], spec)
            sink_queries = None if sink_q is None else group_queries(sink_q[None, block.rows], spec)
            result = _attend(queries, sink_queries, keys, values, block, plan, sink_logits)
            out[block.rows].view(1, length, spec.num_kv_heads, spec.group_size, spec.head_dim).copy_(ungroup(result, 1, length, spec))


def _attend(
    queries: torch.Tensor,
    sink_queries: torch.Tensor | None,
    keys: torch.Tensor,
    values: torch.Tensor,
    block: _Block,
    plan: PrefillPlan,
    sink_logits: torch.Tensor | None,
) -> torch.Tensor:
    """[kv_heads, rows or more, D] for queries [kv_heads, rows, D] over all gathered keys and values [kv_heads, tokens, D]."""
    spec, mask = plan.spec, block.mask
    kv_heads, _, head_dim = queries.shape
    if kv_heads < MIN_MATRICES:
        queries = _in_two(queries)
        sink_queries = None if sink_queries is None else _in_two(sink_queries)
        keys, values = keys.expand(2, -1, -1), values.expand(2, -1, -1)
    scores = scores_of(queries, keys[:, block.tokens], spec)
    sink_values = None
    if sink_queries is not None:
        scores = torch.cat((scores_of(sink_queries, keys[:, :READ_TOKENS], spec), scores), dim=2)
        sink_values = values[:, :READ_TOKENS]
    length, _, masked_tokens = mask.shape
    per_query = scores.view(-1, length, spec.group_size, scores.shape[2])
    if plan.slopes is not None and block.distances is not None:
        # The first dimension is heads, each of them as often as its queries were repeated.
        slopes = plan.slopes.repeat_interleave(len(per_query) // kv_heads, dim=0)
        per_query.add_(slope_bias(slopes[:, None, :, None], block.distances, spec))
    per_query[..., scores.shape[2] - masked_tokens :].add_(mask)
    return sum_values(softmax_of(scores, sink_logits, spec), values[:, block.tokens], sink_values).view(kv_heads, -1, head_dim)


def _in_two(queries: torch.Tensor) -> torch.Tensor:
    """[2, rows or half of them, D] for the queries [1, rows, D] of one head."""
    in_halves = queries.shape[1] % 2 == 0 and queries.shape[1] >= 2 * MIN_QUERY_ROWS
    return queries.view(2, -1, queries.shape[2]) if in_halves else queries.repeat(2, 1, 1)
