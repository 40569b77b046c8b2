"""Activation functions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

# gelu_tanh is the approximation of gelu by tanh.
Activation = Literal["none", "silu", "gelu", "gelu_tanh", "relu", "sigmoid"]


def activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """activation(x), element by element."""
    if activation == "silu":
        return F.silu(x)
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
    if activation == "sigmoid":
        return torch.sigmoid(x)
    return F.relu(x) if activation == "relu" else x
