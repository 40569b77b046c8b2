"""A weight as a backend wants it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Layout = Literal["plain", "onednn"]
# gelu_tanh is the approximation of gelu by tanh.
Activation = Literal["none", "silu", "gelu", "gelu_tanh", "relu", "sigmoid"]


@dataclass(frozen=True, slots=True, eq=False)
class LinearWeight:
    """The weight of a linear map from K inputs to N outputs.

    Attributes:
        layout: What `data` is: [N, K] as written, or oneDNN's blocks of it.
        data: The weight.
        bias: [N], the weight's dtype.
        in_features: K.
        out_features: N.
    """

    layout: Layout
    data: torch.Tensor
    bias: torch.Tensor | None
    in_features: int
    out_features: int

    @classmethod
    def plain(cls, data: torch.Tensor, bias: torch.Tensor | None) -> LinearWeight:
        """A weight as written, no copy of it: data [N, K], bias [N]."""
        return cls("plain", data, bias, in_features=data.shape[1], out_features=data.shape[0])
