"""The definition, in float32."""

from __future__ import annotations

import torch

from compute_svc.kernels.linear import Activation, LinearWeight
from compute_svc.kernels.linear import reference as linear_reference


def gated_linear(x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation) -> torch.Tensor:
    """See the public function; takes the plain layout."""
    gated = linear_reference.activate(linear_reference.linear(x, gate, "none", None).float(), activation)
    return (gated * linear_reference.linear(x, up, "none", None).float()).to(x.dtype)
