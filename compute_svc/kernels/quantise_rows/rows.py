"""Quantised rows as products take them."""

from __future__ import annotations

from typing import NamedTuple

import torch


class QuantisedRows(NamedTuple):
    """Rows of activations: row m is codes[m] * scales[m], or each group of its inputs times the group's scale.

    Attributes:
        codes: [M, K] int8 in [-127, 127].
        scales: [M, 1] float32, or [M, groups]; not negative.
    """

    codes: torch.Tensor
    scales: torch.Tensor


class Norm(NamedTuple):
    """Root-mean-square normalisation: x / sqrt(mean of x^2 + eps) * weight.

    Attributes:
        weight: [K], contiguous; float32 on a CPU, floating on a device.
        eps: Added to the mean square.
    """

    weight: torch.Tensor
    eps: float
