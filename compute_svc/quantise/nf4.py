"""NF4 as bitsandbytes stores it: codes of 16 quantiles, and its 8-bit form of their scales."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from compute_svc.stored_weights.codes import NF4

NESTED_GROUP = 256
"""Scales that share a scale of their own."""


class NestedAbsmax(NamedTuple):
    """The scales of a matrix, quantised in turn (QLoRA, arXiv 2305.14314, section 3): absmax = table[code] * scale + offset.

    Attributes:
        codes: [n] uint8.
        table: [256] float32, of `dynamic_table`.
        scales: [ceil(n / 256)] float32.
        offset: Mean of what was quantised.
    """

    codes: torch.Tensor
    table: torch.Tensor
    scales: torch.Tensor
    offset: float

    def dense(self) -> torch.Tensor:
        """[n] float32, the scales it stands for."""
        scales = self.scales.repeat_interleave(NESTED_GROUP)[: len(self.codes)]
        return self.table[self.codes.long()] * scales + self.offset


def nearest_nf4(ratio: torch.Tensor) -> torch.Tensor:
    """Codes [...] uint8 of numbers in [-1, 1]."""
    return _nearest(torch.tensor(NF4), ratio)


def nested_absmax(absmax: torch.Tensor) -> NestedAbsmax:
    """The quantised form of scales, of any shape, in order."""
    flat = absmax.flatten()
    # Rounded as it will be read: JSON keeps all digits of a double, and a float32 is one.
    offset = float(flat.mean())
    centred = torch.nn.functional.pad(flat - offset, (0, -len(flat) % NESTED_GROUP)).view(-1, NESTED_GROUP)
    scales = centred.abs().amax(dim=1)
    table = dynamic_table()
    ratio = torch.where(scales[:, None] == 0, 0.0, centred / scales[:, None])
    return NestedAbsmax(_nearest(table, ratio).flatten()[: len(flat)], table, scales, offset)


def dynamic_table() -> torch.Tensor:
    """[256] float32, sorted: the numbers of dynamic tree quantisation (8-bit optimizers, arXiv 2110.02861, section 2.2), signed.

    A sign, a unary exponent e of a power of ten, and what is left of seven bits for a linear fraction: for e = 0..6 the midpoints between
    2^e + 1 points of [0.1, 1], times 10^(e - 6), with both signs; and 0 and 1.
    """
    numbers = [0.0, 1.0]
    for exponent in range(7):
        points = torch.linspace(0.1, 1.0, (1 << exponent) + 1)
        means = (points[:-1] + points[1:]) / 2.0 * math.pow(10.0, exponent - 6)
        numbers += means.tolist() + (-means).tolist()
    return torch.tensor(sorted(numbers))


def _nearest(table: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Index of the nearest entry of a sorted table; the lower one of two that are equally near."""
    return torch.bucketize(numbers, (table[1:] + table[:-1]) / 2).to(torch.uint8)
