"""Normalisation of hidden states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.layer_norm import layer_norm
from compute_svc.kernels.quantise_rows import Norm as RowNorm
from compute_svc.kernels.rms_norm import rms_norm


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """One norm.

    Attributes:
        kind: By root mean square, or by mean and variance.
        weight: [hidden].
        bias: [hidden]; None = none.
        eps: Added to the mean square or variance.
        of_rows: The same for products that normalise their rows themselves; None = it is none of theirs.
    """

    kind: Literal["rms", "layer"]
    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float
    of_rows: RowNorm | None = field(init=False)

    def __post_init__(self) -> None:
        """Effects: on a CPU a copy of the weight in float32, where it is not."""
        has_kernel = backend_for("quantise_rows", self.weight.device.type, has_triton=True) != "aten"
        is_of_rows = has_kernel and self.kind == "rms" and self.bias is None and self.weight.dim() == 1
        weight = self.weight.float() if self.weight.device.type == "cpu" else self.weight
        object.__setattr__(self, "of_rows", RowNorm(weight.contiguous(), self.eps) if is_of_rows else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[M, hidden] to [M, hidden], new memory."""
        if self.kind == "rms":
            return rms_norm(x, self.weight, self.eps)
        return layer_norm(x, self.weight, self.bias, self.eps)
