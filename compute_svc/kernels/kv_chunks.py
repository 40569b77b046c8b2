"""Reading paged KV in chunks of fixed length: what both attention kernels share on a CPU.

The promise they keep together: what a query gets depends, bit for bit, on its own request's tokens up to it and on nothing else: not on
the other requests of the batch, not on how the prompt was split, not on whether the query came as a decode row or inside a prefill
chunk. Three rules make it so, each measured with float32 on AVX-512 and AVX2 for 1 to 16 threads:

- Chunks start at multiples of CHUNK_TOKENS of the absolute position, and weighted values are summed chunk after chunk. (A product
  over a longer inner dimension is split at places that depend on its length.)
- A softmax over rows padded with -inf to a multiple of CHUNK_TOKENS equals the softmax over any longer padding: lanes of a vector
  register are summed first, and what the padding adds to them is zero.
- Batched products have at least MIN_QUERY_ROWS rows and at least MIN_MATRICES matrices: smaller ones go through other code.

Everything is float32, whatever the store holds.
"""

from __future__ import annotations

import math

import torch

from compute_svc.kernels.attention_spec import AttentionSpec

CHUNK_TOKENS = 128
MIN_QUERY_ROWS = 4
MIN_MATRICES = 2


def tiles_of_chunks(
    page_rows: torch.Tensor, first_chunks: torch.Tensor, num_chunks: int, lengths: torch.Tensor, spec: AttentionSpec
) -> torch.Tensor:
    """Where some requests' chunks are in the store, as a list of tiles: the largest equal parts that pages and chunks both consist of.

    Tiles past a request's end are replaced by its last one, whose content is its own.

    Args:
        page_rows: [R, max_pages] int64.
        first_chunks: [R] int64, the chunk each request is read from.
        num_chunks: How many chunks to read of each.
        lengths: [R] int64, at least 1.

    Returns:
        [2 * kv_heads * R * tiles] int64: heads, then requests, then tiles.
    """
    tile = _tile_tokens(spec)
    per_chunk, per_page = CHUNK_TOKENS // tile, spec.page_size_tokens // tile
    wanted = torch.arange(num_chunks * per_chunk, device=page_rows.device) + first_chunks[:, None] * per_chunk
    last = (lengths - 1).div_(tile, rounding_mode="floor")
    tiles = torch.minimum(wanted, last[:, None])
    tiles = page_rows.gather(1, tiles) if per_page == 1 else page_rows.gather(1, tiles // per_page) * per_page + tiles % per_page
    per_head = spec.num_pages * per_page
    heads = torch.arange(0, 2 * spec.num_kv_heads * per_head, per_head, device=page_rows.device)
    return (heads[:, None] + tiles.view(-1)).view(-1)


def read_chunks(kv: torch.Tensor, tiles: torch.Tensor, num_requests: int, spec: AttentionSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the tiles that `tiles_of_chunks` found, each [kv_heads * num_requests, tokens, D] float32."""
    tile_values = _tile_tokens(spec) * spec.head_dim
    rows = kv.view(-1, tile_values).index_select(0, tiles).view(2, spec.num_kv_heads * num_requests, -1, spec.head_dim)
    keys, values = rows.float().unbind(0)
    return keys, values


def _tile_tokens(spec: AttentionSpec) -> int:
    return math.gcd(spec.page_size_tokens, CHUNK_TOKENS)


def sum_values(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """weights [N, M, L] times values [N, L, D], summed chunk after chunk: [N, M, D] float32."""
    total = torch.bmm(weights[:, :, :CHUNK_TOKENS], values[:, :CHUNK_TOKENS])
    for start in range(CHUNK_TOKENS, weights.shape[2], CHUNK_TOKENS):
        total.baddbmm_(weights[:, :, start : start + CHUNK_TOKENS], values[:, start : start + CHUNK_TOKENS])
    return total


def group_queries(queries: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Rows that meet the same keys, side by side.

    Args:
        queries: [B, Q, num_heads, D]: B requests with Q queries each.

    Returns:
        [kv_heads * B, rows, D] float32; rows = Q * group_size, repeated until there are MIN_QUERY_ROWS.
    """
    batch, length = queries.shape[:2]
    group = spec.group_size
    copies = math.ceil(MIN_QUERY_ROWS / (length * group))
    split = queries.view(batch, 1, length, spec.num_kv_heads, group, spec.head_dim).expand(-1, copies, -1, -1, -1, -1)
    grouped = split.permute(3, 0, 1, 2, 4, 5).reshape(spec.num_kv_heads * batch, copies * length * group, spec.head_dim)
    return grouped.float()


def ungroup(rows: torch.Tensor, batch: int, length: int, spec: AttentionSpec) -> torch.Tensor:
    """Undoes `group_queries`, a view: [B, Q, kv_heads, group_size, D]."""
    group = spec.group_size
    kept = rows[:, : length * group].view(spec.num_kv_heads, batch, length, group, spec.head_dim)
    return kept.permute(1, 2, 0, 3, 4)
