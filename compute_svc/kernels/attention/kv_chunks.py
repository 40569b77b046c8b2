"""Reading paged KV: what both attention kernels share on a CPU where no native ones compute (kernels/native/attention.py).

The promise they keep together: what a query gets depends, bit for bit, on its own request's tokens up to it and on nothing else: not on
the other requests of the batch, not on how the prompt was split, not on whether the query came as a decode row or inside a prefill
chunk. Four rules make it so. Each was measured in float32, with AVX-512, AVX2 and SSE kernels, for 1 to 16 threads:

- Weighted values are summed chunk after chunk, and chunks start at multiples of CHUNK_TOKENS of the absolute position. (A product over
  a longer inner dimension is split at places that depend on its length.)
- A softmax over rows padded with -inf to a multiple of READ_TOKENS equals the softmax over any longer padding: the lanes of a vector
  register are summed first, and what padding adds to them is zero.
- Heads are multiplied as if they were padded with zeros to a multiple of HEAD_ALIGNMENT: products of narrow heads of another width, up to
  11 on AVX-512, go through other code for other numbers of rows.
- Batched products have at least MIN_QUERY_ROWS rows and at least MIN_MATRICES matrices: smaller ones go through other code.

With attention sinks a row has two sections: the sink section, always the request's first READ_TOKENS tokens, and behind it the main
section, which is what is read without sinks. Both are there for every query, wherever it stands: the main section hides the sinks, the
sink section all others. One softmax goes over the two, and values are summed sink section first, then chunk after chunk; so the
rules hold as they are. Positions are counted from lengths alone, and behind the sinks only distances matter: where whole chunks between
the first one and the first that is read are left out of page table and lengths, every row stays what it was, bit for bit.

Everything is float32, whatever the store holds.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

from compute_svc.kernels.attention.attention_spec import MAX_SINKS, AttentionSpec
from compute_svc.kernels.paged_kv.kv_codes import decode
from compute_svc.kernels.paged_kv.kv_layer import KvLayer

READ_TOKENS = 32
CHUNK_TOKENS = 128
HEAD_ALIGNMENT = 4
MIN_QUERY_ROWS = 4
MIN_MATRICES = 2

assert MAX_SINKS <= READ_TOKENS, "the sinks are one section"


def read_start(position: int, spec: AttentionSpec) -> int:
    """Where reading begins for a query at a position: the chunk with the first token it sees."""
    return spec.first_visible(position) // CHUNK_TOKENS * CHUNK_TOKENS


def read_end(length: int) -> int:
    """Where reading ends to have `length` tokens."""
    return math.ceil(length / READ_TOKENS) * READ_TOKENS


def find_tiles(page_rows: torch.Tensor, starts: torch.Tensor, num_tokens: int, lengths: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Where some requests' tokens are in the store, as a list of tiles: the largest equal parts of pages that reads consist of.

    Tiles past a request's end are replaced by its last one, whose content is its own.

    Args:
        page_rows: [R, max_pages] int64.
        starts: [R] int64, the position each request is read from, a multiple of CHUNK_TOKENS.
        num_tokens: How many to read of each, a multiple of READ_TOKENS.
        lengths: [R] int64, at least 1.

    Returns:
        [2 * kv_heads * R * tiles] int64: heads, then requests, then tiles; with sinks those of the sink section come first.
    """
    tile = _tile_tokens(spec)
    per_page = spec.page_size_tokens // tile
    wanted = torch.arange(num_tokens // tile, device=page_rows.device) + (starts // tile)[:, None]
    if spec.sinks:
        section = torch.arange(READ_TOKENS // tile, device=page_rows.device)
        wanted = torch.cat((section.expand(len(wanted), -1), wanted), dim=1)
    tiles = torch.minimum(wanted, ((lengths - 1) // tile)[:, None])
    tiles = page_rows.gather(1, tiles) if per_page == 1 else page_rows.gather(1, tiles // per_page) * per_page + tiles % per_page
    per_head = spec.num_pages * per_page
    heads = torch.arange(0, 2 * spec.num_kv_heads * per_head, per_head, device=page_rows.device)
    return (heads[:, None] + tiles.view(-1)).view(-1)


def read_tiles(kv: KvLayer, tiles: torch.Tensor, num_requests: int, spec: AttentionSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the tiles that `find_tiles` found, each [kv_heads * num_requests, tokens, padded D] float32."""
    rows = _gather(kv.data, tiles, spec)
    numbers = rows.float() if kv.scales is None else decode(rows, _gather(kv.scales, tiles, spec), kv.group)
    keys, values = _pad_heads(numbers.view(2, spec.num_kv_heads * num_requests, -1, spec.head_dim)).unbind(0)
    return keys, values


def _gather(stored: torch.Tensor, tiles: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """[tokens, n]: the tiles of stored [2 * kv_heads, num_pages, page_size, n], one after the other."""
    width = stored.shape[-1]
    return stored.view(-1, _tile_tokens(spec) * width).index_select(0, tiles).view(-1, width)


def _pad_heads(rows: torch.Tensor) -> torch.Tensor:
    """[..., D] with zeros added up to a multiple of HEAD_ALIGNMENT."""
    missing = -rows.shape[-1] % HEAD_ALIGNMENT
    return F.pad(rows, (0, missing)) if missing else rows


def _tile_tokens(spec: AttentionSpec) -> int:
    return math.gcd(spec.page_size_tokens, READ_TOKENS)


def softmax_of(scores: torch.Tensor, sink_logits: torch.Tensor | None, spec: AttentionSpec) -> torch.Tensor:
    """Weights of scores [N, M, L] of queries as `group_queries` lays them out: [N, M, L] float32.

    A head's sink logit is one score more in every row, whose weight is dropped. It has a section of READ_TOKENS for itself, the rest of it
    padding, so that rows are summed as they are without.

    Args:
        sink_logits: [num_heads] float32; None = there are none.
    """
    if sink_logits is None:
        return torch.softmax(scores, dim=-1)
    section = scores.new_full((*scores.shape[:2], READ_TOKENS), -math.inf)
    section[:, :, 0] = (
        sink_logits.view(spec.num_kv_heads, 1, -1).expand(-1, scores[..., 0].numel() // spec.num_heads, -1).reshape(scores.shape[:2])
    )
    return torch.softmax(torch.cat((section, scores), dim=2), dim=-1)[:, :, READ_TOKENS:]


def sum_values(weights: torch.Tensor, values: torch.Tensor, sink_values: torch.Tensor | None = None) -> torch.Tensor:
    """weights [N, M, L] times values [N, L, D], summed chunk after chunk: [N, M, D] float32.

    With sink_values [N, READ_TOKENS, D] the weights have as many columns more, before the others, and their sum comes first.
    """
    if sink_values is None:
        total = torch.bmm(weights[:, :, :CHUNK_TOKENS], values[:, :CHUNK_TOKENS])
        summed = CHUNK_TOKENS
    else:
        total = torch.bmm(weights[:, :, :READ_TOKENS], sink_values)
        weights, summed = weights[:, :, READ_TOKENS:], 0
    for start in range(summed, weights.shape[2], CHUNK_TOKENS):
        total.baddbmm_(weights[:, :, start : start + CHUNK_TOKENS], values[:, start : start + CHUNK_TOKENS])
    return total


def group_queries(queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Rows that meet the same keys, side by side.

    Args:
        queries: [B, Q, num_heads, D]: B requests with Q queries each.

    Returns:
        [kv_heads * B, rows, padded D] float32; rows = Q * group_size, repeated until there are MIN_QUERY_ROWS.
    """
    batch, length = queries.shape[:2]
    group = spec.group_size
    copies = math.ceil(MIN_QUERY_ROWS / (length * group))
    split = queries.view(batch, 1, length, spec.num_kv_heads, group, spec.head_dim).expand(-1, copies, -1, -1, -1, -1)
    grouped = split.permute(3, 0, 1, 2, 4, 5).reshape(spec.num_kv_heads * batch, copies * length * group, spec.head_dim)
    return _pad_heads(grouped.float())


def scores_of(queries: torch.Tensor, keys: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Scaled and capped scores of queries [N, M, D] against keys [N, L, D]: [N, M, L] float32, new memory."""
    nothing = queries.new_empty(1)
    if spec.softcap is None:
        return torch.baddbmm(nothing, queries, keys.transpose(1, 2), beta=0, alpha=spec.scale)
    scores = torch.baddbmm(nothing, queries, keys.transpose(1, 2), beta=0, alpha=spec.scale / spec.softcap)
    return scores.tanh_().mul_(spec.softcap)


@lru_cache(maxsize=64)
def slopes_of(spec: AttentionSpec, device: torch.device) -> torch.Tensor | None:
    """[kv_heads, group_size] float32, the slopes in the order of `group_queries`; None if there are none. Copied to a device once, read only."""
    if spec.slopes is None:
        return None
    slopes = torch.tensor(spec.slopes, dtype=torch.float32, device=device)
    return (slopes.bfloat16().float() if spec.rounded_slopes else slopes).view(spec.num_kv_heads, spec.group_size)


def distances_of(queries: torch.Tensor, keys: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """What slopes are multiplied by, float32, for positions that broadcast: how far a key is behind its query, as a number below 0; with
    rounded slopes the key's position, which broadcasts as `keys` does."""
    return keys.bfloat16().float() if spec.rounded_slopes else (keys - queries).float()


def slope_bias(slopes: torch.Tensor, distances: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """What scores gain by slopes and distances, which broadcast: float32, new memory."""
    bias = slopes * distances
    return bias.bfloat16().float().mul_(spec.scale) if spec.rounded_slopes else bias


def ungroup(rows: torch.Tensor, batch: int, length: int, spec: AttentionSpec) -> torch.Tensor:
    """Undoes `group_queries`, a view: [B, Q, kv_heads, group_size, D]."""
    group = spec.group_size
    kept = rows[:, : length * group, : spec.head_dim].view(spec.num_kv_heads, batch, length, group, spec.head_dim)
    return kept.permute(1, 2, 0, 3, 4)
