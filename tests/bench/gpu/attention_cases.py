"""Attention of decode rows and of prefills over paged KV, beside torch's scaled_dot_product_attention over contiguous KV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.gathered_attention import gathered_attention, plan_gathered
from compute_svc.kernels.decode_attention import decode_attention, plan_decode
from compute_svc.kernels.paged_kv.kv_codes import encode
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.prefill_attention import plan_prefill, prefill_attention
from compute_svc.kv.kv_format import KV_FORMATS, KvFormat
from tests.bench.gpu.cases import Case, Prepared
from tests.bench.gpu.shapes import PAGE_SIZE_TOKENS, Prefill, Sizes
from tests.bench.gpu.timing import num_sets

# Queries of a prefill that the reference computes: the last ones see everything.
_CHECKED_QUERIES = 96


class Kv(NamedTuple):
    """KV of some requests of one length.

    Attributes:
        layer: Pages.
        table: [requests, pages of one] int64, in no order.
        length: Tokens of each.
    """

    layer: KvLayer
    table: torch.Tensor
    length: int

    def numbers(self) -> torch.Tensor:
        """[2, requests, kv_heads, length, D] float32: keys, then values."""
        requests, pages = self.table.shape
        offsets = torch.arange(PAGE_SIZE_TOKENS, device=self.table.device)
        slots = self.layer.read(self.table.reshape(-1, 1).expand(-1, PAGE_SIZE_TOKENS).reshape(-1), offsets.repeat(requests * pages))
        split = slots.view(2, -1, requests, pages * PAGE_SIZE_TOKENS, slots.shape[-1])
        return split.transpose(1, 2)[:, :, :, : self.length]


def decode_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Every load in every KV format, and the peers."""
    for requests, length in sizes.decodes:
        load = f"{requests}x{length}"
        for name in ("bfloat16", "int8-g8", "int8-g32", "int8-g64", "fp8-g64"):
            kv_format = KV_FORMATS[name]
            num_bytes = requests * length * kv_format.bytes_per_token(1, sizes.kv_heads, sizes.head_dim)
            yield Case("decode", name, load, "ours", num_bytes, decode_case(sizes, device, kv_format, requests, length), tolerance=1e-2)
        bf16_bytes = requests * length * KV_FORMATS["bfloat16"].bytes_per_token(1, sizes.kv_heads, sizes.head_dim)
        yield Case("decode", "bfloat16", load, "sdpa", bf16_bytes, _decode_sdpa(sizes, device, requests, length, folded=False))
        yield Case("decode", "bfloat16", load, "sdpa-folded", bf16_bytes, _decode_sdpa(sizes, device, requests, length, folded=True))
        if requests * length <= 1 << 16:
            yield Case(
                "decode",
                "bfloat16",
                load,
                "gathered",
                bf16_bytes,
                decode_case(sizes, device, KV_FORMATS["bfloat16"], requests, length, gathered=True),
            )


def prefill_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Every load with bfloat16 KV and one of codes, and the peer."""
    for load in sizes.prefills:
        pairs = load.requests * (load.tokens * load.before + load.tokens * (load.tokens + 1) // 2)
        operations = 4.0 * sizes.heads * sizes.head_dim * pairs
        queries = 2 * 2 * load.requests * load.tokens * sizes.heads * sizes.head_dim
        for name in ("bfloat16", "int8-g64"):
            kv_format = KV_FORMATS[name]
            stored = load.requests * (load.tokens + load.before) * kv_format.bytes_per_token(1, sizes.kv_heads, sizes.head_dim)
            prepare = _prefill(sizes, device, kv_format, load)
            yield Case("prefill", name, str(load), "ours", stored + queries, prepare, operations)
        yield Case("prefill", "bfloat16", str(load), "sdpa", queries, _prefill_sdpa(sizes, device, load), operations)


def _kv(sizes: Sizes, device: torch.device, kv_format: KvFormat, requests: int, length: int) -> Kv:
    pages = -(-length // PAGE_SIZE_TOKENS)
    shape = (2 * sizes.kv_heads, requests * pages, PAGE_SIZE_TOKENS, sizes.head_dim)
    data = torch.randn(shape, dtype=torch.bfloat16, device=device)
    if kv_format.group is None:
        layer = KvLayer(data.to(kv_format.dtype))
    else:
        # Head by head: in float32 all of it would be four times as large.
        heads = [encode(head, kv_format.group, kv_format.dtype) for head in data]
        layer = KvLayer(torch.stack([codes for codes, _ in heads]), torch.stack([scales for _, scales in heads]), kv_format.group)
    return Kv(layer, torch.randperm(requests * pages, device=device).view(requests, pages), length)


def _sets(sizes: Sizes, device: torch.device, kv_format: KvFormat, requests: int, length: int) -> list[Kv]:
    one = _kv(sizes, device, kv_format, requests, length)
    others = range(num_sets(one.layer.data.nbytes, sizes.cold_bytes) - 1)
    scales = one.layer.scales
    copies = (KvLayer(one.layer.data.clone(), None if scales is None else scales.clone(), one.layer.group) for _ in others)
    return [one, *(one._replace(layer=layer) for layer in copies)]


def _spec(sizes: Sizes, kv: Kv) -> AttentionSpec:
    num_pages = kv.layer.data.shape[1]
    dims = (sizes.heads, sizes.kv_heads, sizes.head_dim, PAGE_SIZE_TOKENS, num_pages)
    return AttentionSpec(*dims, sizes.head_dim**-0.5, None, stored=kv.layer.data.dtype)


def decode_case(
    sizes: Sizes, device: torch.device, kv_format: KvFormat, requests: int, length: int, *, gathered: bool = False
) -> Callable[[], Prepared]:
    """Decode attention of some requests of one length; gathered: by torch's own operations."""

    def prepare() -> Prepared:
        sets = _sets(sizes, device, kv_format, requests, length)
        first = sets[0]
        spec, lengths = _spec(sizes, first), [length] * requests
        q = torch.randn(requests, sizes.heads, sizes.head_dim, dtype=torch.bfloat16, device=device)
        out = torch.full((requests, sizes.heads * sizes.head_dim), torch.nan, dtype=torch.bfloat16, device=device)
        if gathered:
            aten = plan_gathered(first.table, lengths, range(requests + 1), spec)
            return Prepared([lambda: gathered_attention(q, first.layer, aten, out)], lambda: out, lambda: attention(q, first, 1))
        plan = plan_decode(first.table, lengths, spec)
        calls = [partial(decode_attention, q, kv.layer, plan, out) for kv in sets]
        return Prepared(calls, lambda: out, lambda: attention(q, first, 1), type(plan).__name__)

    return prepare


def _decode_sdpa(sizes: Sizes, device: torch.device, requests: int, length: int, *, folded: bool) -> Callable[[], Prepared]:
    """torch's own; folded: the heads that share keys as queries of one head."""

    def prepare() -> Prepared:
        first = _kv(sizes, device, KV_FORMATS["bfloat16"], requests, length)
        keys, values = first.numbers().bfloat16()
        num = num_sets(2 * keys.nbytes, sizes.cold_bytes)
        pairs = [(keys, values), *((keys.clone(), values.clone()) for _ in range(num - 1))]
        q = torch.randn(requests, sizes.heads, sizes.head_dim, dtype=torch.bfloat16, device=device)
        shape = (requests, sizes.kv_heads, -1, sizes.head_dim) if folded else (requests, sizes.heads, 1, sizes.head_dim)
        results: list[torch.Tensor] = []

        def run(k: torch.Tensor, v: torch.Tensor) -> None:
            results[:] = [F.scaled_dot_product_attention(q.view(shape), k, v, enable_gqa=not folded)]

        calls = [partial(run, k, v) for k, v in pairs]
        return Prepared(calls, lambda: results[0].reshape(requests, -1), lambda: attention(q, first, 1))

    return prepare


def _prefill(sizes: Sizes, device: torch.device, kv_format: KvFormat, load: Prefill) -> Callable[[], Prepared]:
    def prepare() -> Prepared:
        length = load.before + load.tokens
        first = _kv(sizes, device, kv_format, load.requests, length)
        q = torch.randn(load.requests * load.tokens, sizes.heads, sizes.head_dim, dtype=torch.bfloat16, device=device)
        out = torch.full((len(q), sizes.heads * sizes.head_dim), torch.nan, dtype=torch.bfloat16, device=device)
        starts = list(accumulate([load.tokens] * load.requests, initial=0))
        plan = plan_prefill(first.table, [length] * load.requests, starts, _spec(sizes, first))
        return Prepared(
            [lambda: prefill_attention(q, first.layer, plan, out)],
            lambda: _checked(out, load),
            lambda: attention(_checked(q, load).view(-1, *q.shape[1:]), first, min(load.tokens, _CHECKED_QUERIES)),
            type(plan).__name__,
        )

    return prepare


def _prefill_sdpa(sizes: Sizes, device: torch.device, load: Prefill) -> Callable[[], Prepared]:
    def prepare() -> Prepared:
        length = load.before + load.tokens
        first = _kv(sizes, device, KV_FORMATS["bfloat16"], load.requests, length)
        keys, values = first.numbers().bfloat16()
        q = torch.randn(load.requests * load.tokens, sizes.heads, sizes.head_dim, dtype=torch.bfloat16, device=device)
        queries = q.view(load.requests, load.tokens, sizes.heads, sizes.head_dim).transpose(1, 2)
        results: list[torch.Tensor] = []
        mask = causal_lower_right(load.tokens, length) if load.before else None

        def run() -> None:
            results[:] = [F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=mask is None, enable_gqa=True)]

        return Prepared(
            [run],
            lambda: _checked(results[0].transpose(1, 2).reshape(len(q), -1), load),
            lambda: attention(_checked(q, load).view(-1, *q.shape[1:]), first, min(load.tokens, _CHECKED_QUERIES)),
        )

    return prepare


def _checked(rows: torch.Tensor, load: Prefill) -> torch.Tensor:
    """Each request's last queries; all not a number if any row is."""
    last = rows.reshape(load.requests, load.tokens, -1)[:, -_CHECKED_QUERIES:]
    return last.reshape(-1, last.shape[-1]) + 0 * rows.float().sum()


def attention(q: torch.Tensor, kv: Kv, num_queries: int) -> torch.Tensor:
    """[rows, heads * D] float32: attention of each request's last queries.

    Args:
        q: [requests * num_queries, heads, D].
        kv: What they see.
        num_queries: Of each request.
    """
    keys, values = kv.numbers()
    requests, kv_heads, length, dim = keys.shape
    split = q.float().view(requests, num_queries, kv_heads, -1, dim)
    outputs = []
    hidden = torch.arange(length, device=q.device) > torch.arange(length - num_queries, length, device=q.device)[:, None]
    for head in range(kv_heads):
        scores = torch.einsum("rqgd,rld->rqgl", split[:, :, head], keys[:, head]) * dim**-0.5
        weights = scores.masked_fill_(hidden[None, :, None], -torch.inf).softmax(dim=-1)
        outputs.append(torch.einsum("rqgl,rld->rqgd", weights, values[:, head]))
    return torch.stack(outputs, dim=2).reshape(len(q), -1)
