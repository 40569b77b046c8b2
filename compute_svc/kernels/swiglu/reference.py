"""The definition, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from compute_svc.kernels.linear import LinearWeight
from compute_svc.kernels.linear import reference as linear_reference


def swiglu(x: torch.Tensor, gate: LinearWeight, up: LinearWeight) -> torch.Tensor:
    """See the public function; takes the plain layout."""
    gated = F.silu(linear_reference.linear(x, gate, None).float())
    return (gated * linear_reference.linear(x, up, None).float()).to(x.dtype)
