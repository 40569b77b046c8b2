"""Attention over a few pages beside the same computed densely, for each kind of store, and what comes before it."""

from __future__ import annotations

import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.native.attention import native_attention, plan_native
from compute_svc.kernels.native.heads import place_heads
from compute_svc.kernels.native.library import DTYPES, KnownAnswerError, NativeLibrary
from compute_svc.kernels.paged_kv.kv_layer import KvLayer

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


def check_place_heads(library: NativeLibrary) -> None:
    """Two tokens, of one query head, one key head and one value head; numbers that need no rounding.

    Raises:
        KnownAnswerError: A number is rotated wrongly, or stored anywhere else.
    """
    heads = torch.arange(30, dtype=torch.float32).view(2, 3, 5)
    cos, sin = (
        torch.tensor([[[2.0, 3.0, 2.0, 3.0]], [[1.0, 0.0, 1.0, 0.0]]]),
        torch.tensor([[[-1.0, -2.0, 1.0, 2.0]], [[0.0, -1.0, 0.0, 1.0]]]),
    )
    expected = heads.clone()
    for head in (0, 1):
        first, second = heads[:, head, :2], heads[:, head, 2:4]
        expected[:, head, :2] = first * cos[:, 0, :2] + second * sin[:, 0, :2]
        expected[:, head, 2:4] = second * cos[:, 0, 2:] + first * sin[:, 0, 2:]
    stored = torch.zeros((2, 2, 2, 5))
    stored[:, 1, 1], stored[:, 0, 0] = expected[0, 1:], expected[1, 1:]
    for dtype in DTYPES:
        rotated, kv = heads.to(dtype, copy=True), KvLayer(torch.zeros_like(stored, dtype=dtype))
        place_heads(library, rotated, kv, torch.tensor([3, 0]), cos, sin, 1, 4)
        if not torch.equal(rotated.float(), expected) or not torch.equal(kv.data.float(), stored):
            raise KnownAnswerError(f"place_heads of {dtype} gives wrong answers")
