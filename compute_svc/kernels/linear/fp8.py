"""Float8 weights with activations rounded to float8, each row by itself, or each of its groups; on devices that multiply them."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.fp8_linear import LEAST_GROUP, Fp8Weight, fp8_gated_linear, fp8_linear, has_fp8_products, pack_fp8
from compute_svc.kernels.linear.ints import ActivationFormat
from compute_svc.kernels.linear.weight import LinearWeight
from compute_svc.stored_weights.coded_weight import CodedWeight


def takes_fp8(weight: CodedWeight, activations: ActivationFormat) -> bool:
    """Whether a weight is multiplied as the float8 that it is stored as, which is where the checkpoint is made for it."""
    if weight.code != "fp8" or weight.activations != "fp8" or activations != "auto":
        return False
    if weight.zeros is not None or weight.offsets is not None or weight.table is not None or weight.sparse is not None:
        return False
    has_length = weight.group >= weight.num_columns or weight.group % LEAST_GROUP == 0
    return has_length and weight.inputs is None and has_fp8_products(weight.device)


def pack(weight: CodedWeight, bias: torch.Tensor | None) -> LinearWeight:
    """Lays out a weight that `takes_fp8` says yes of."""
    packed = pack_fp8(weight.data, weight.group, weight.scales, bias)
    return LinearWeight("fp8", packed.data, bias, weight.in_features, weight.out_features, fp8=packed)


def linear(x: torch.Tensor, weight: LinearWeight, activation: Activation, add: torch.Tensor | None) -> torch.Tensor:
    """See the public function."""
    return fp8_linear(x, _fp8(weight), activation=activation, add=add)


def go_together(gate: LinearWeight, up: LinearWeight) -> bool:
    """Whether `gated_linear` takes them at once."""
    return gate.fp8 is not None and up.fp8 is not None and gate.fp8.group == up.fp8.group


def gated_linear(x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation) -> torch.Tensor:
    """See the public function."""
    return fp8_gated_linear(x, _fp8(gate), _fp8(up), activation)


def _fp8(weight: LinearWeight) -> Fp8Weight:
    assert weight.fp8 is not None, "the layout says that they are there"
    return weight.fp8
