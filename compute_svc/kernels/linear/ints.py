"""Integer weights with activations rounded to int8, each row by itself."""

from __future__ import annotations

from typing import Literal

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.int_linear import int_gated_linear, int_linear, pack_ints
from compute_svc.kernels.linear.weight import LinearWeight
from compute_svc.kernels.native import native_library
from compute_svc.kernels.quantise_rows import quantise_rows
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import BITS
from compute_svc.stored_weights.stored_weight import StoredWeight

ActivationFormat = Literal["auto", "float", "int8"]
"""What integer weights are multiplied by: activations as the checkpoint says, or rounded where a kernel is there for it; never; always."""


def takes_ints(weight: StoredWeight, activations: ActivationFormat) -> bool:
    """Whether a weight is multiplied as the integers that it is stored as; else its numbers are."""
    if not isinstance(weight, CodedWeight) or weight.device.type != "cpu" or activations == "float":
        return False
    is_integer = weight.code != "fp8" and weight.table is None and weight.sparse is None and weight.static_scale is None
    if not is_integer or (weight.group < weight.num_columns and weight.group % 8):
        return False
    return weight.activations == "int8" or activations == "int8" or (weight.activations == "float" and native_library() is not None)


def pack(weight: CodedWeight, bias: torch.Tensor | None) -> LinearWeight:
    """Lays out a weight that `takes_ints` says yes of."""
    codes, zeros = weight.codes(), weight.zeros
    shift = 128 if weight.code == "uint8" else 0
    if weight.code == "uint4" and zeros is not None and bool((zeros == 8).all()):
        # Symmetric: without the shift there is nothing to add for each group.
        shift = 8
    if shift:
        codes = (codes.to(torch.int16) - shift).to(torch.int8)
        zeros = (torch.zeros_like(weight.scales) if zeros is None else zeros.float()) - shift
    scales = weight.scales.float()
    offsets = weight.offsets
    if zeros is not None and bool(zeros.any()):
        offsets = (0.0 if offsets is None else offsets) - zeros.float() * scales
    packed = pack_ints(codes.to(torch.int8), 8 if BITS[weight.code] == 8 else 4, weight.group, scales, offsets, bias)
    return LinearWeight("ints", packed.data, bias, weight.in_features, weight.out_features, ints=packed, inputs=weight.inputs)


def linear(x: torch.Tensor, weight: LinearWeight, activation: Activation, add: torch.Tensor | None) -> torch.Tensor:
    """See the public function."""
    assert weight.ints is not None, "the layout says that they are there"
    return int_linear(quantise_rows(_inputs(x, weight)), weight.ints, activation=activation, add=add, dtype=x.dtype)


def gated_linear(x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation) -> torch.Tensor:
    """See the public function; both weights take the same inputs in the same order."""
    assert gate.ints is not None and up.ints is not None, "the layout says that they are there"
    return int_gated_linear(quantise_rows(_inputs(x, gate)), gate.ints, up.ints, activation, dtype=x.dtype)


def go_together(gate: LinearWeight, up: LinearWeight) -> bool:
    """Whether `gated_linear` takes them at once."""
    if gate.ints is None or up.ints is None:
        return False
    same_inputs = gate.inputs is up.inputs or (gate.inputs is not None and up.inputs is not None and torch.equal(gate.inputs, up.inputs))
    return same_inputs and (gate.ints.bits, gate.ints.group) == (up.ints.bits, up.ints.group)


def _inputs(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    return x if weight.inputs is None else x.index_select(1, weight.inputs)
