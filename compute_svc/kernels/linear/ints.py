"""Integer weights with activations rounded to int8, each row by itself, or each of its groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.int_linear import LEAST_GROUP, PackedInts, int_gated_linear, int_linear_of, join_ints, pack_ints
from compute_svc.kernels.int_linear import int_mlp as whole_mlp
from compute_svc.kernels.linear.weight import LinearWeight
from compute_svc.kernels.native import native_library
from compute_svc.kernels.quantise_rows import Norm as RowNorm
from compute_svc.kernels.quantise_rows import quantise_rows
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import BITS
from compute_svc.stored_weights.stored_weight import StoredWeight

ActivationFormat = Literal["auto", "float", "int8"]
"""What integer weights are multiplied by: activations as the checkpoint says, or rounded where a kernel is there for it; never; always."""


def takes_ints(weight: StoredWeight, activations: ActivationFormat) -> bool:
    """Whether a weight is multiplied as the integers that it is stored as, by activations that are rounded to int8."""
    if not isinstance(weight, CodedWeight) or activations == "float":
        return False
    is_integer = weight.code != "fp8" and weight.table is None and weight.sparse is None and weight.static_scale is None
    if not is_integer or (weight.group < weight.num_columns and weight.group % 8):
        return False
    if weight.device.type != "cpu":
        return _device_takes_ints(weight, activations)
    if weight.activations == "fp8" and activations == "auto":
        return False
    return keeps_integers(activations, made_for_int8=weight.activations == "int8")


def _device_takes_ints(weight: CodedWeight, activations: ActivationFormat) -> bool:
    """Whether a device's kernel multiplies so. Weights with zeros are shifted by them, group by group, which it has for one group alone."""
    if activations == "auto" and weight.activations != "int8":
        return False
    has_kernel = backend_for("int_linear", weight.device.type, has_triton=True) == "triton"
    is_shifted = weight.zeros is not None or weight.offsets is not None or weight.code == "uint8"
    return has_kernel and (weight.group >= weight.num_columns or (not is_shifted and weight.group % LEAST_GROUP == 0))


def keeps_integers(activations: ActivationFormat, *, made_for_int8: bool) -> bool:
    """Whether integers are multiplied as such on a CPU, by activations that are rounded.

    Args:
        activations: See there.
        made_for_int8: Whether the checkpoint says that they are rounded.
    """
    return activations == "int8" or (activations == "auto" and (made_for_int8 or native_library() is not None))


class Integers(NamedTuple):
    """code * scale + offset.

    Attributes:
        codes: [N, K] int8, or of 4 bits or fewer any integer dtype.
        scales: [N, G], as they are stored.
        offsets: [N, G] float32; None = zero.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None


def shifted(weight: CodedWeight, shift: int) -> Integers:
    """A weight of integers, its codes less a shift."""
    codes, zeros = weight.codes(), weight.zeros
    if shift:
        codes = (codes.to(torch.int16) - shift).to(torch.int8)
        zeros = (torch.zeros_like(weight.scales) if zeros is None else zeros.float()) - shift
    offsets = weight.offsets
    if zeros is not None and bool(zeros.any()):
        offsets = (0.0 if offsets is None else offsets) - zeros.float() * weight.scales.float()
    return Integers(codes, weight.scales, offsets)


def pack(weight: CodedWeight, bias: torch.Tensor | None) -> LinearWeight:
    """Lays out a weight that `takes_ints` says yes of."""
    shift = 128 if weight.code == "uint8" else 0
    if weight.code == "uint4" and weight.zeros is not None and bool((weight.zeros == 8).all()):
        # Symmetric: without the shift there is nothing to add for each group.
        shift = 8
    codes, scales, offsets = shifted(weight, shift)
    # What was made for activations as they are suffers least from rounding them if each group has a scale of its own.
    in_groups = weight.activations == "float"
    bits = 8 if BITS[weight.code] == 8 else 4
    packed = pack_ints(codes.to(torch.int8), bits, weight.group, scales.float(), offsets, bias, rows_in_groups=in_groups)
    return LinearWeight("ints", packed.data, bias, weight.in_features, weight.out_features, ints=packed, inputs=weight.inputs)


def takes_norm(weight: LinearWeight) -> bool:
    """Whether `linear` normalises rows in the same call."""
    return weight.ints is not None and weight.inputs is None


def linear(x: torch.Tensor, weight: LinearWeight, activation: Activation, add: torch.Tensor | None, norm: RowNorm | None) -> torch.Tensor:
    """See the public function."""
    return int_linear_of(_inputs(x, weight), _ints(weight), norm=norm, activation=activation, add=add)


def join(gate: LinearWeight, up: LinearWeight) -> tuple[LinearWeight, LinearWeight]:
    """Two weights of integers, together in memory where one product can have both."""
    if not go_together(gate, up):
        return gate, up
    first, second = join_ints(_ints(gate), _ints(up))
    return replace(gate, data=first.data, ints=first), replace(up, data=second.data, ints=second)


def is_int_mlp(gate: LinearWeight | None, up: LinearWeight, down: LinearWeight) -> bool:
    """Whether `int_mlp` computes an MLP of these weights."""
    weights = [up, down] if gate is None else [gate, up, down]
    return all(takes_norm(weight) for weight in weights) and (gate is None or go_together(gate, up))


def int_mlp(
    x: torch.Tensor,
    gate: LinearWeight | None,
    up: LinearWeight,
    down: LinearWeight,
    activation: Activation,
    *,
    norm: RowNorm | None,
    add: torch.Tensor | None,
) -> torch.Tensor:
    """down(activation(gate(x)) * up(x)) (+ add), or down(activation(up(x))) without a gate, in one call; see kernels/int_linear."""
    return whole_mlp(x, None if gate is None else _ints(gate), _ints(up), _ints(down), activation, norm=norm, add=add)


def gated_linear(x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation) -> torch.Tensor:
    """See the public function; both weights take the same inputs in the same order."""
    return int_gated_linear(quantise_rows(_inputs(x, gate), _ints(gate).row_group), _ints(gate), _ints(up), activation, dtype=x.dtype)


def go_together(gate: LinearWeight, up: LinearWeight) -> bool:
    """Whether `gated_linear` takes them at once."""
    if gate.ints is None or up.ints is None:
        return False
    same_inputs = gate.inputs is up.inputs or (gate.inputs is not None and up.inputs is not None and torch.equal(gate.inputs, up.inputs))
    return same_inputs and (gate.ints.bits, gate.ints.group, gate.ints.row_group) == (up.ints.bits, up.ints.group, up.ints.row_group)


def _inputs(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
    return x if weight.inputs is None else x.index_select(1, weight.inputs)


def _ints(weight: LinearWeight) -> PackedInts:
    assert weight.ints is not None, "the layout says that they are there"
    return weight.ints
