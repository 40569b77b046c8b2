"""Normalisation of hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from compute_svc.kernels.layer_norm import layer_norm
from compute_svc.kernels.rms_norm import rms_norm


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """One norm.

    Attributes:
        kind: By root mean square, or by mean and variance.
        weight: [hidden].
        bias: [hidden]; None = none.
        eps: Added to the mean square or variance.
    """

    kind: Literal["rms", "layer"]
    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[M, hidden] to [M, hidden], new memory."""
        if self.kind == "rms":
            return rms_norm(x, self.weight, self.eps)
        return layer_norm(x, self.weight, self.bias, self.eps)
