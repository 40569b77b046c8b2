"""Attention with sinks is its definition: dense, over keys that nobody has turned."""

from __future__ import annotations

import math

import pytest
import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.decode_attention import plan_decode
from compute_svc.kernels.linear import pack_linear
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.prefill_attention import plan_prefill
from compute_svc.layers.attention import Attention
from compute_svc.layers.heads import ProjectedHeads
from compute_svc.layers.rotary_table import RotaryTable, frequencies
from compute_svc.layers.step import Step, StepKind
from tests.fakes.kernel_closeness import assert_kernel_close

HEADS, KV_HEADS, HEAD_DIM, TURNING, PAGE = 4, 2, 16, 8, 16
THETA = 100.0


def naive_attention(heads: torch.Tensor, window: int, sinks: int) -> torch.Tensor:
    """[T, HEADS * D] float64 of [T, HEADS + 2 * KV_HEADS, D], not turned: each query against each key it sees, by their distance."""
    wide = heads.double()
    rows = []
    for position in range(len(wide)):
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            seen = [key for key in range(position + 1) if key < sinks or key > position - window]
            scores = []
            for key in seen:
                distance = (min(position, sinks + window - 1) if key < sinks else position) - key
                scores.append(turned(wide[position, head], distance) @ wide[key, HEADS + group] / math.sqrt(HEAD_DIM))
            weights = torch.stack(scores).softmax(0)
            rows.append(weights @ wide[seen, HEADS + KV_HEADS + group])
    return torch.stack(rows).view(len(wide), -1)


def turned(vector: torch.Tensor, distance: int) -> torch.Tensor:
    """A head whose first dimensions, in pairs of their halves, are turned by a distance: one complex number times another."""
    half = TURNING // 2
    angles = distance * THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    pairs = torch.complex(vector[:half], vector[half:TURNING]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((pairs.real, pairs.imag, vector[TURNING:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("window", "sinks"), [(1, 1), (9, 4), (30, 32), (60, 4)])
def test_what_a_layer_with_sinks_gives_is_the_definition(window: int, sinks: int, dtype: torch.dtype) -> None:
    length, num_decoded = 50, 3
    heads = torch.randn((length, HEADS + 2 * KV_HEADS, HEAD_DIM), generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = Attention(
        heads=ProjectedHeads(pack_linear(torch.eye(heads[0].numel(), dtype=dtype)), None, None, HEADS + KV_HEADS, HEAD_DIM),
        output=pack_linear(torch.eye(HEADS * HEAD_DIM, dtype=dtype)),
        rotary_dims=TURNING,
        kind=0,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
    )
    pages = torch.arange(4)[None]
    kv = KvLayer(torch.zeros((2 * KV_HEADS, 4, PAGE, HEAD_DIM), dtype=dtype))
    spec = AttentionSpec(HEADS, KV_HEADS, HEAD_DIM, PAGE, 4, HEAD_DIM**-0.5, window, sinks=sinks)
    table = RotaryTable(frequencies(TURNING, THETA, None))

    def attended(start: int, end: int, *, decoding: bool) -> torch.Tensor:
        positions = torch.arange(start, end)
        kind = StepKind(
            *table.at(positions, end),
            decode=plan_decode(pages, [end], spec) if decoding else None,
            prefill=None if decoding else plan_prefill(pages, [end], [0, end - start], spec),
            sink_turn=table.at(positions.clamp(max=sinks + window - 1), end),
        )
        step = Step(end - start, int(decoding), positions, torch.zeros((end - start, HEADS * HEAD_DIM), dtype=dtype), (kind,))
        return layer.forward(heads[start:end].flatten(1), None, kv, step)

    prefilled = attended(0, length - num_decoded, decoding=False)
    decoded = [attended(position, position + 1, decoding=True) for position in range(length - num_decoded, length)]

    assert_kernel_close("attention", torch.cat((prefilled, *decoded)), naive_attention(heads, window, sinks).to(dtype))
