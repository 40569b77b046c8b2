"""The definition, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from compute_svc.kernels.linear.weight import LinearWeight


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> LinearWeight:
    """See the public function."""
    return LinearWeight("plain", weight, bias, in_features=weight.shape[1], out_features=weight.shape[0])


def linear(x: torch.Tensor, weight: LinearWeight, add: torch.Tensor | None) -> torch.Tensor:
    """See the public function; takes the plain layout."""
    assert weight.layout == "plain", f"the reference cannot read a weight in {weight.layout} layout"
    result = F.linear(x.float(), weight.data.float(), None if weight.bias is None else weight.bias.float())
    return (result if add is None else result + add.float()).to(x.dtype)
