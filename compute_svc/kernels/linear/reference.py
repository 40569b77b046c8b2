"""The definition, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from compute_svc.kernels.activation import Activation, activate
from compute_svc.kernels.linear.weight import LinearWeight


def linear(x: torch.Tensor, weight: LinearWeight, activation: Activation, add: torch.Tensor | None) -> torch.Tensor:
    """See the public function; takes the plain layout."""
    assert weight.layout == "plain", f"the reference cannot read a weight in {weight.layout} layout"
    result = activate(F.linear(x.float(), weight.data.float(), None if weight.bias is None else weight.bias.float()), activation)
    return (result if add is None else result + add.float()).to(x.dtype)
