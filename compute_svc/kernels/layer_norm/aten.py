"""ATen's kernel: each row is reduced alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """See the public function."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)
