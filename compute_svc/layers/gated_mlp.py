"""The gated MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compute_svc.kernels.gated_linear import gated_linear
from compute_svc.kernels.linear import LinearWeight, linear


@dataclass(frozen=True, slots=True, eq=False)
class GatedMlp:
    """down(silu(gate(x)) * up(x))."""

    gate: LinearWeight
    up: LinearWeight
    down: LinearWeight

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual + mlp(x), both [P, hidden]."""
        return linear(gated_linear(x, self.gate, self.up, "silu"), self.down, add=residual)
