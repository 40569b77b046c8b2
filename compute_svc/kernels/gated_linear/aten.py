"""Two of torch's own products, each rounded, then the activation and the multiplication, each rounded."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from compute_svc.kernels.activation import activate
from compute_svc.kernels.linear import Activation, LinearWeight


def gated_linear(x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation) -> torch.Tensor:
    """See the public function; takes the plain layout."""
    assert gate.layout == up.layout == "plain", f"torch's products cannot read weights in {gate.layout} and {up.layout} layout"
    return activate(F.linear(x, gate.data, gate.bias), activation).mul_(F.linear(x, up.data, up.bias))
