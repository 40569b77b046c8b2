"""Shapes of attention, random KV of some requests and random queries."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.paged_kv.kv_codes import encode
from compute_svc.kernels.paged_kv.kv_layer import KvLayer


class Shape(NamedTuple):
    """Parameters of an AttentionSpec."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size_tokens: int
    window: int | None
    slopes: tuple[float, ...] | None = None
    softcap: float | None = None
    sinks: int = 0
    rounded_slopes: bool = False


class Store(NamedTuple):
    """Random KV of some requests, in a store that is otherwise poison."""

    kv: KvLayer
    page_table: torch.Tensor
    spec: AttentionSpec


def _rest(shape: Shape) -> dict[str, Any]:
    return {name: value for name, value in shape._asdict().items() if name in ("window", "slopes", "rounded_slopes", "softcap", "sinks")}


def store_of(shape: Shape, lengths: list[int], dtype: torch.dtype, *, group: int | None = None) -> Store:
    """In a dtype of numbers, or in codes of one in groups."""
    number_dtype = dtype if group is None else torch.float32
    generator = torch.Generator().manual_seed(0)
    size = shape.page_size_tokens
    pages_of = [math.ceil(length / size) for length in lengths]
    num_pages = sum(pages_of) + 3
    kv = torch.full((2 * shape.num_kv_heads, num_pages, size, shape.head_dim), torch.nan, dtype=number_dtype)
    free = (1 + torch.randperm(num_pages - 1, generator=generator)).tolist()
    page_table = torch.zeros((len(lengths), max(pages_of) + 1), dtype=torch.int64)
    for request, (length, count) in enumerate(zip(lengths, pages_of, strict=True)):
        own, free = free[:count], free[count:]
        page_table[request, :count] = torch.tensor(own)
        kv[:, own] = torch.randn((2 * shape.num_kv_heads, count, size, shape.head_dim), generator=generator).to(number_dtype)
        kv[:, own[-1], (length - 1) % size + 1 :] = 1e30
    spec = AttentionSpec(*shape[:4], num_pages=num_pages, scale=shape.head_dim**-0.5, stored=dtype, **_rest(shape))
    return Store(KvLayer(kv) if group is None else KvLayer(*encode(kv, group, dtype), group), page_table, spec)


def moved(kv: KvLayer, device: str) -> KvLayer:
    """The same on a device."""
    return KvLayer(kv.data.to(device), None if kv.scales is None else kv.scales.to(device), kv.group)


def queries_of(count: int, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """[count, num_heads, D], strided as inside a wider projection."""
    wide = torch.randn((count, shape.num_heads + 3, shape.head_dim), generator=torch.Generator().manual_seed(1))
    return wide.to(dtype)[:, : shape.num_heads]


def sink_queries_of(queries: torch.Tensor, shape: Shape) -> torch.Tensor | None:
    """Others than the queries; None where the shape has no sinks."""
    return queries.flip(0, 2) if shape.sinks else None
