"""The weights of all experts of a layer in one tensor for each product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.linear import LinearWeight

GroupedFormat = Literal["float", "int8", "fp8", "groups"]
"""Numbers that rows are multiplied by as they are; codes that rows are rounded for, to int8 or float8; codes that become numbers in registers."""


class Clamp(NamedTuple):
    """Gate g up to the limit and up u within plus or minus the limit make g * sigmoid(alpha * g) * (u + 1), in place of an activation.

    Attributes:
        alpha: See there.
        limit: Of both.
    """

    alpha: float
    limit: float


@dataclass(frozen=True, slots=True, eq=False)
class GroupedWeight:
    """The weights of E linear maps from K inputs to N outputs, of one format.

    Attributes:
        format: See there.
        in_features: K.
        data: [E, N, K] floating, int8 or float8_e4m3fn; of "groups", each expert's as `GroupedCodes.data`.
        scales: [E, N, G] float32; of "groups" [E, G, N] as `GroupedCodes.scales`; None for "float".
        offsets: [E, G, N] float32, of "groups" alone; None = zero.
        bias: [E, N] floating; None = zero.
        group: Inputs that share a scale, K if all do.
        row_group: Inputs that share a scale in rows that are rounded for it; None = all.
        bits: Of a code, of "groups".
        block: As `GroupedCodes.block`.
        table: As `GroupedCodes.table`, of all experts.
        lookup: As `GroupedCodes.lookup`.
    """

    format: GroupedFormat
    in_features: int
    data: torch.Tensor
    scales: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    group: int = 0
    row_group: int | None = None
    bits: int = 0
    block: int = 0
    table: torch.Tensor | None = None
    lookup: str = ""

    @property
    def is_grouped(self) -> bool:
        """Whether groups of inputs are scaled before they are summed."""
        return self.format == "groups" or (self.scales is not None and self.scales.shape[2] > 1)

    @property
    def out_features(self) -> int:
        """N."""
        return self.data.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class GroupedMlps:
    """E gated MLPs.

    Attributes:
        into: Gates and, behind the outputs of each, ups: [E, 2 width, hidden].
        down: [E, hidden, width].
        activation: Of the gates.
        clamp: What is done to gate and up; None = activation(gate) * up.
    """

    into: GroupedWeight
    down: GroupedWeight
    activation: Activation
    clamp: Clamp | None = None

    @property
    def count(self) -> int:
        """E."""
        return len(self.down.data)


def group_weights(experts: Sequence[Sequence[LinearWeight]]) -> GroupedWeight | None:
    """The weights of each expert one behind the other, and those of all experts in one tensor; None if they are not alike, or no kernel takes them.

    Args:
        experts: For each, weights of the same inputs and as many outputs.

    Returns:
        A copy.
    """
    first = experts[0][0]
    every = [weight for expert in experts for weight in expert]
    if len({_traits(weight) for weight in every}) > 1 or first.inputs is not None:
        return None
    bias = _stacked(experts, lambda weight: weight.bias)
    data = _stacked(experts, lambda weight: weight.data)
    assert data is not None, "weights have numbers or codes"
    if first.layout == "plain":
        return GroupedWeight("float", first.in_features, data, bias=bias, group=first.in_features)
    if first.layout == "ints" and first.ints is not None and first.ints.layout == "triton" and first.ints.offsets is None:
        scales = _stacked(experts, _scales)
        return GroupedWeight("int8", first.in_features, data, scales, None, bias, first.ints.group, first.ints.row_group)
    if first.layout == "fp8" and first.fp8 is not None:
        scales = _stacked(experts, _scales)
        return GroupedWeight("fp8", first.in_features, data, scales, None, bias, first.fp8.group, first.fp8.row_group)
    if first.layout == "groups" and first.groups is not None:
        codes = first.groups
        scales = _stacked(experts, _scales, dim=1)
        offsets = _stacked(experts, _offsets, dim=1)
        kind = codes.group, None, codes.bits, codes.block, codes.table, codes.lookup
        return GroupedWeight("groups", first.in_features, data, scales, offsets, bias, *kind)
    return None


def _scales(weight: LinearWeight) -> torch.Tensor | None:
    codes = weight.ints or weight.fp8 or weight.groups
    return None if codes is None else codes.scales


def _offsets(weight: LinearWeight) -> torch.Tensor | None:
    return None if weight.groups is None else weight.groups.offsets


def _traits(weight: LinearWeight) -> tuple[object, ...]:
    """What weights must have alike to lie in one tensor."""
    codes = weight.ints or weight.fp8 or weight.groups
    of_weight = weight.layout, weight.data.dtype, weight.data.shape, weight.in_features, weight.inputs is None
    if codes is None:
        return of_weight
    if weight.groups is not None:
        # Tables that are rounded alike may differ where numbers are not rounded.
        table = None if weight.groups.table is None else tuple(weight.groups.table.tolist())
        return *of_weight, weight.groups.bits, codes.group, weight.groups.block, table
    rounded = weight.ints or weight.fp8
    assert rounded is not None, "codes are of one of three kinds"
    return *of_weight, codes.group, rounded.row_group, weight.ints is not None and weight.ints.offsets is None


def _stacked(
    experts: Sequence[Sequence[LinearWeight]], part_of: Callable[[LinearWeight], torch.Tensor | None], dim: int = 0
) -> torch.Tensor | None:
    """A part of all weights: each expert's one behind the other along a dimension, experts along a new first one.

    Those that a weight does not have are zeros; None if none has them. In float32 where dtypes differ.
    """
    parts = [[part_of(weight) for weight in expert] for expert in experts]
    there = [part for expert in parts for part in expert if part is not None]
    if not there:
        return None
    dtype = there[0].dtype if len({part.dtype for part in there}) == 1 else torch.float32
    shape = list(there[0].shape)
    length = shape[dim]
    shape[dim] = length * len(experts[0])
    whole = there[0].new_zeros((len(experts), *shape), dtype=dtype)
    for into, expert in zip(whole, parts, strict=True):
        for index, part in enumerate(expert):
            if part is not None:
                into.narrow(dim, index * length, length).copy_(part)
    return whole
