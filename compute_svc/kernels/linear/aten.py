"""torch's own products, in the weight's dtype; on CUDA they are summed in float32 (kernels/exact_products.py)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from compute_svc.kernels.activation import activate
from compute_svc.kernels.linear.weight import Activation, LinearWeight


def linear(x: torch.Tensor, weight: LinearWeight, activation: Activation, add: torch.Tensor | None) -> torch.Tensor:
    """See the public function; takes the plain layout. The sum is rounded before it is activated, and before `add` if there is a bias too."""
    assert weight.layout == "plain", f"torch's products cannot read a weight in {weight.layout} layout"
    if add is None:
        return activate(F.linear(x, weight.data, weight.bias), activation)
    if weight.bias is None:
        # In the sum's memory, which spares a copy.
        return add.addmm_(x, weight.data.t())
    return F.linear(x, weight.data, weight.bias).add_(add)
