"""A weight as a backend wants it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.fp8_linear.packed import Fp8Weight
from compute_svc.kernels.group_linear.packed import GroupedCodes
from compute_svc.kernels.int_linear.packed import PackedInts
from compute_svc.kernels.native.float_weight import PanelWeight

__all__ = ["Activation", "Layout", "LinearWeight"]

Layout = Literal["plain", "onednn", "panels", "ints", "groups", "fp8"]


@dataclass(frozen=True, slots=True, eq=False)
class LinearWeight:
    """The weight of a linear map from K inputs to N outputs.

    Attributes:
        layout: What `data` is: [N, K] as written, oneDNN's blocks of it, the native library's `panels`, or the codes of `ints`, `groups` or
            `fp8`.
        data: The weight.
        bias: [N], the weight's dtype.
        in_features: K.
        out_features: N.
        ints: A weight of integers that rounded activations are multiplied by.
        groups: A weight of integers that activations are multiplied by as they are.
        fp8: A weight of float8 that rounded activations are multiplied by.
        panels: A weight of floats for the native library.
        inputs: [K'] int64, which inputs its columns take, in their order; None = all. Of `ints` and `groups` alone.
    """

    layout: Layout
    data: torch.Tensor
    bias: torch.Tensor | None
    in_features: int
    out_features: int
    ints: PackedInts | None = None
    inputs: torch.Tensor | None = None
    groups: GroupedCodes | None = None
    fp8: Fp8Weight | None = None
    panels: PanelWeight | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of its tensors."""
        coded = self.ints or self.groups or self.fp8 or self.panels
        if coded is not None:
            return coded.num_bytes
        return self.data.nbytes + (0 if self.bias is None else self.bias.nbytes)

    @classmethod
    def plain(cls, data: torch.Tensor, bias: torch.Tensor | None) -> LinearWeight:
        """A weight as written, no copy of it: data [N, K], bias [N]."""
        return cls("plain", data, bias, in_features=data.shape[1], out_features=data.shape[0])
