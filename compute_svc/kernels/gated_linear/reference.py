"""The definition, in float32."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation, activate
from compute_svc.kernels.linear import LinearWeight
from compute_svc.kernels.linear import reference as linear_reference


def gated_linear(x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation) -> torch.Tensor:
    """See the public function; takes the plain layout."""
    gated = activate(linear_reference.linear(x, gate, "none", None).float(), activation)
    return (gated * linear_reference.linear(x, up, "none", None).float()).to(x.dtype)
