"""Where the norms of a layer are: each placement is its formula."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.layers.attention import Attention
from compute_svc.layers.decoder_layer import DecoderLayer, ParallelDecoderLayer, PostLnDecoderLayer
from compute_svc.layers.mlp import Mlp
from compute_svc.layers.norm import Norm
from compute_svc.layers.step import Step

HIDDEN = torch.tensor([[1.0, -2.0, 3.0, 0.5], [0.25, 4.0, -1.0, 2.0]])
NOTHING = torch.empty(0)
NO_KV = KvLayer(NOTHING)
STEP = Step(num_tokens=len(HIDDEN), num_decodes=0, slots=NOTHING, attended=NOTHING, kinds=())


class Times:
    """A sublayer that multiplies, in place of attention or an MLP."""

    takes_norm = False

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None, *_: Any) -> torch.Tensor:
        return x * self.factor if residual is None else residual + x * self.factor


ATTENTION, MLP = cast(Attention, Times(2.0)), cast(Mlp, Times(-3.0))
NORMS = [Norm("rms", torch.tensor([1.0, 2.0, 0.5, 3.0]) * scale, None, 1e-6) for scale in (1.0, 1.5, 0.7, 2.0)]


def normed(index: int, x: torch.Tensor) -> torch.Tensor:
    return NORMS[index].forward(x)


def test_pre_norms_are_before_each_sublayer() -> None:
    layer = DecoderLayer(ATTENTION, MLP, attention_norm=NORMS[0], mlp_norm=NORMS[1])
    middle = HIDDEN + 2 * normed(0, HIDDEN)

    torch.testing.assert_close(layer.forward(HIDDEN, NO_KV, STEP), middle - 3 * normed(1, middle))


def test_post_norms_are_behind_each_sublayer_before_the_sum() -> None:
    layer = DecoderLayer(ATTENTION, MLP, attention_output_norm=NORMS[0], mlp_output_norm=NORMS[1])
    middle = HIDDEN + normed(0, 2 * HIDDEN)

    torch.testing.assert_close(layer.forward(HIDDEN, NO_KV, STEP), middle + normed(1, -3 * middle))


def test_sandwich_norms_are_before_and_behind() -> None:
    layer = DecoderLayer(ATTENTION, MLP, NORMS[0], NORMS[1], NORMS[2], NORMS[3])
    middle = HIDDEN + normed(1, 2 * normed(0, HIDDEN))

    torch.testing.assert_close(layer.forward(HIDDEN, NO_KV, STEP), middle + normed(3, -3 * normed(2, middle)))


def test_norms_of_2017_are_of_the_sums() -> None:
    layer = PostLnDecoderLayer(ATTENTION, MLP, attention_output_norm=NORMS[0], mlp_output_norm=NORMS[1])
    middle = normed(0, HIDDEN + 2 * HIDDEN)

    torch.testing.assert_close(layer.forward(HIDDEN, NO_KV, STEP), normed(1, middle - 3 * middle))


@pytest.mark.parametrize("has_own", [True, False])
def test_a_parallel_layer_reads_one_input_behind_one_norm_or_two(has_own: bool) -> None:
    layer = ParallelDecoderLayer(ATTENTION, MLP, attention_norm=NORMS[0], mlp_norm=NORMS[1] if has_own else None)

    expected = HIDDEN + 2 * normed(0, HIDDEN) - 3 * normed(1 if has_own else 0, HIDDEN)
    torch.testing.assert_close(layer.forward(HIDDEN, NO_KV, STEP), expected)


@pytest.mark.parametrize("behind", [None, 2])
def test_what_is_added_is_scaled_last(behind: int | None) -> None:
    norm = None if behind is None else NORMS[behind]
    layer = DecoderLayer(ATTENTION, MLP, NORMS[0], attention_output_norm=norm, mlp_norm=NORMS[1], mlp_output_norm=norm, residual_scale=0.5)

    def out(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x if behind is None else normed(behind, x))

    middle = HIDDEN + out(2 * normed(0, HIDDEN))
    torch.testing.assert_close(layer.forward(HIDDEN, NO_KV, STEP), middle + out(-3 * normed(1, middle)))
