"""Two products with the activation and the multiplication inside them.

One product for both halves would need a pass over its result, and ATen's silu rounds the last elements of a thread's share differently
from the others: which ones those are depends on the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from compute_svc.kernels.activation import activate
from compute_svc.kernels.linear import Activation, LinearWeight
from compute_svc.kernels.linear.cpu import onednn_linear, onednn_linear_with


def gated_linear(x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation) -> torch.Tensor:
    """See the public function."""
    if gate.layout == "plain":
        return activate(F.linear(x, gate.data, gate.bias), activation).mul_(F.linear(x, up.data, up.bias))
    gated = onednn_linear(x, gate, activation)
    return onednn_linear_with(x, up, gated, "mul")
