"""The rotation of each pair, written out."""

from __future__ import annotations

import torch


def rotary_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """See the public function."""
    half = x.shape[-1] // 2
    first, second = x[..., :half].float(), x[..., half:].float()
    cosine, sine = cos[..., half:], sin[..., half:]
    x.copy_(torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1))
