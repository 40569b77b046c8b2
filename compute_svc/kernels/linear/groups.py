"""Weights of codes that stay so in memory and meet activations as they are, in a kernel's registers; on devices that Triton compiles for."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.group_linear import LEAST_GROUP, GroupedCodes, group_gated_linear, group_linear, pack_groups
from compute_svc.kernels.linear.ints import shifted
from compute_svc.kernels.linear.weight import LinearWeight
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import BITS, Code

# What unsigned codes are less by as signed ones of as many bits.
_SHIFTS: dict[Code, int] = {"uint8": 128, "uint4": 8}


def takes_groups(weight: CodedWeight) -> bool:
    """Whether a weight stays as it is stored."""
    if weight.code == "fp8" or weight.sparse is not None:
        return False
    if weight.table is not None and (
        weight.code != "uint4" or weight.table.ndim > 1 or weight.zeros is not None or weight.offsets is not None
    ):
        return False
    has_length = weight.group >= weight.num_columns or weight.group % LEAST_GROUP == 0
    return has_length and backend_for("group_linear", weight.device.type, has_triton=True) == "triton"


def pack(weight: CodedWeight, bias: torch.Tensor | None) -> LinearWeight:
    """Lays out a weight that `takes_groups` says yes of."""
    codes, scales, offsets = shifted(weight, 0 if weight.table is not None else _SHIFTS.get(weight.code, 0))
    bits = max(4, BITS[weight.code])
    packed = pack_groups(codes.to(torch.int8), bits, weight.group, scales, offsets, bias, table=weight.table)
    return LinearWeight("groups", packed.data, bias, weight.in_features, weight.out_features, groups=packed, inputs=weight.inputs)


def linear(x: torch.Tensor, weight: LinearWeight, activation: Activation, add: torch.Tensor | None) -> torch.Tensor:
    """See the public function."""
    return group_linear(_inputs(x, weight), _groups(weight), activation=activation, add=add)


def go_together(gate: LinearWeight, up: LinearWeight) -> bool:
    """Whether `gated_linear` takes them at once: both are of codes, and of the same inputs in the same order."""
    if gate.groups is None or up.groups is None or (gate.inputs is None) != (up.inputs is None):
        return False
    return gate.inputs is up.inputs


def gated_linear(x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation) -> torch.Tensor:
    """See the public function."""
    return group_gated_linear(_inputs(x, gate), _groups(gate), _groups(up), activation)


def _inputs(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    return x if weight.inputs is None else x.index_select(1, weight.inputs)


def _groups(weight: LinearWeight) -> GroupedCodes:
    assert weight.groups is not None, "the layout says that they are there"
    return weight.groups
