"""Integer weights as a backend wants them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.native.int_weight import NativeWeight

IntLayout = Literal["plain", "native", "triton"]


@dataclass(frozen=True, slots=True, eq=False)
class PackedInts:
    """The weight of a linear map from K inputs to N outputs: in group g, code * scales[n, g] + offsets[n, g].

    Attributes:
        layout: What the tensors are: as written, the library's tiles of them, or as written for the Triton kernel.
        bits: Of a code, 4 or 8.
        group: Inputs that share a scale; the last group may have fewer.
        in_features: K.
        out_features: N.
        data: plain, triton: [N, K] int8 codes. native: see kernels/native/int_weight.py.
        scales: plain, triton: [N, G] float32. native: in tiles, float16 where that is exact.
        offsets: As scales; None = zero.
        bias: plain, triton: [N] float32; native: filled up to whole blocks. None = zero.
        rows_in_groups: Whether rows that are quantised for it have a scale for each of its groups; else one for all.
        built_for: The instruction set whose library the native layout is for.
        native: What the library is given of the native layout.
        counters: triton: int32 zeros, where programs that share a tile of a product count themselves; zeros again behind it.
        joined: Of a gate and the weight that its outputs are multiplied with, that lie together: both as one weight, the gate first.
    """

    layout: IntLayout
    bits: int
    group: int
    in_features: int
    out_features: int
    data: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None
    bias: torch.Tensor | None
    rows_in_groups: bool = False
    built_for: InstructionSet = "portable"
    native: NativeWeight = field(default_factory=NativeWeight, repr=False)
    counters: torch.Tensor | None = None
    joined: PackedInts | None = field(default=None, repr=False)

    @property
    def row_group(self) -> int | None:
        """Inputs that share a scale in rows that are quantised for it; None = all."""
        return self.group if self.rows_in_groups and self.group < self.in_features else None

    @property
    def num_bytes(self) -> int:
        """Memory of its tensors."""
        return sum(part.nbytes for part in (self.data, self.scales, self.offsets, self.bias) if part is not None)


def join_ints(gate: PackedInts, up: PackedInts) -> tuple[PackedInts, PackedInts]:
    """The same weights, the second behind the first in memory if one product can have both: in the triton layout, alike, and without offsets.

    That is a copy: let go of those given.
    """
    alike = gate.layout == up.layout == "triton" and gate.data.shape == up.data.shape and gate.scales.shape == up.scales.shape
    if not alike or gate.group != up.group or gate.rows_in_groups != up.rows_in_groups or gate.joined is not None:
        return gate, up
    if gate.offsets is not None or up.offsets is not None or (gate.bias is None) != (up.bias is None):
        return gate, up
    data, scales = torch.cat((gate.data, up.data)), torch.cat((gate.scales.t(), up.scales.t()), dim=1).t()
    bias = None if gate.bias is None or up.bias is None else torch.cat((gate.bias, up.bias))
    whole = replace(gate, out_features=len(data), data=data, scales=scales, bias=bias)
    return _half(gate, whole, slice(len(gate.data))), _half(up, whole, slice(len(gate.data), None))


def _half(part: PackedInts, whole: PackedInts, rows: slice) -> PackedInts:
    bias = None if whole.bias is None else whole.bias[rows]
    return replace(part, data=whole.data[rows], scales=whole.scales[rows], bias=bias, joined=whole)
