"""Attention over a few pages beside the same computed densely, for each kind of store and for heads with and without a last part."""

from __future__ import annotations

import torch

from compute_svc.kernels.attention_spec import AttentionSpec
from compute_svc.kernels.kv_layer import KvLayer
from compute_svc.kernels.native.attention import native_attention, plan_native
from compute_svc.kernels.native.library import KnownAnswerError, NativeLibrary

_LENGTH, _PAGE, _HEADS, _KV_HEADS = 150, 8, 6, 2
_PAGES = -(-_LENGTH // _PAGE)
# Sums in another order, and another e^x: measured is a tenth of it.
_TOLERANCE = 2e-5


def check_attention(library: NativeLibrary) -> None:
    """Over a context of two chunks, prefilled whole.

    Raises:
        KnownAnswerError: It is not what dense attention gives, or the last token gets other bits as a decode row.
    """
    generator = torch.Generator().manual_seed(0)
    for head_dim in (32, 20):
        numbers = torch.randn((2 * _KV_HEADS, _PAGES, _PAGE, head_dim), generator=generator)
        queries = torch.randn((_LENGTH, _HEADS, head_dim), generator=generator)
        codes = (numbers * 40).to(torch.int8)
        scales = torch.full((*codes.shape[:3], -(-head_dim // 8)), 2**-5, dtype=torch.float16)
        for kv, dense in (
            (KvLayer(numbers), numbers),
            (KvLayer(numbers.bfloat16()), numbers.bfloat16().float()),
            (KvLayer(codes, scales, 8), codes.float() * 2**-5),
        ):
            _check(library, queries, kv, dense)


def _check(library: NativeLibrary, queries: torch.Tensor, kv: KvLayer, dense: torch.Tensor) -> None:
    head_dim = queries.shape[2]
    spec = AttentionSpec(_HEADS, _KV_HEADS, head_dim, _PAGE, _PAGES, head_dim**-0.5, 100, softcap=5.0, stored=kv.data.dtype)
    # The pages backwards: their order is the table's.
    table = torch.arange(_PAGES - 1, -1, -1)[None]
    prefilled, decoded = torch.empty((_LENGTH, _HEADS * head_dim)), torch.empty((1, _HEADS * head_dim))
    native_attention(queries, kv, plan_native(library, table, [_LENGTH], [0, _LENGTH], spec), prefilled)
    native_attention(queries[-1:], kv, plan_native(library, table, [_LENGTH], [0, 1], spec), decoded)
    name = f"attention over {kv.data.dtype}, {head_dim} dimensions,"
    if not torch.allclose(prefilled, _dense(queries, dense.flip(1), spec), rtol=_TOLERANCE, atol=_TOLERANCE):
        raise KnownAnswerError(f"{name} gives wrong answers")
    if not torch.equal(decoded, prefilled[-1:]):
        raise KnownAnswerError(f"{name} gives a decode row other bits than the same query of a prompt")


def _dense(queries: torch.Tensor, pages: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """[tokens, num_heads * D] of [tokens, num_heads, D] and [2 * kv_heads, pages, page_size, D] in order."""
    assert spec.softcap is not None and spec.window is not None, "the check has both"
    rows = pages.flatten(1, 2)[:, : len(queries)].repeat_interleave(spec.group_size, dim=0)
    keys, values = rows[: spec.num_heads], rows[spec.num_heads :]
    scores = torch.tanh(torch.einsum("qhd,hkd->hqk", queries, keys) * (spec.scale / spec.softcap)) * spec.softcap
    seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril().triu(1 - spec.window)
    weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
    return torch.einsum("hqk,hkd->qhd", weights, values).flatten(1)
