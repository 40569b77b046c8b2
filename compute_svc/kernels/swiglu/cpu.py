"""Two products with the activation and the multiplication inside them.

One product for both halves would need a pass over its result, and ATen's silu rounds the last elements of a thread's share differently
from the others: which ones those are depends on the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from compute_svc.kernels.linear import LinearWeight
from compute_svc.kernels.linear.cpu import onednn_linear, onednn_linear_with


def swiglu(x: torch.Tensor, gate: LinearWeight, up: LinearWeight) -> torch.Tensor:
    """See the public function."""
    if gate.layout == "plain":
        return F.silu(F.linear(x, gate.data, gate.bias)).mul_(F.linear(x, up.data, up.bias))
    gated = onednn_linear(x, gate, "swish")
    return onednn_linear_with(x, up, gated, "mul")
