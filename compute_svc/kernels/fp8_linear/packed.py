"""Float8 weights as the Triton kernel wants them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LEAST_GROUP = 32
"""Inputs in a group, or a multiple, of weights of more than one group for each output: as many as matrix instructions take."""


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Weight:
    """The weight of a linear map from K inputs to N outputs: in group g, code * scales[n, g].

    Attributes:
        group: Inputs that share a scale, at most K; the last group may have fewer.
        data: [N, K] float8_e4m3fn.
        scales: [N, G] float32.
        bias: [N] floating; None = zero.
        counters: int32 zeros, where programs that share a tile of a product count themselves; zeros again behind it.
    """

    group: int
    data: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None
    counters: torch.Tensor

    @property
    def in_features(self) -> int:
        """K."""
        return self.data.shape[1]

    @property
    def row_group(self) -> int | None:
        """Inputs that share a scale in rows that are quantised for it; None = all."""
        is_power_of_two = self.group & (self.group - 1) == 0
        return self.group if is_power_of_two and self.group < self.in_features else None

    @property
    def num_bytes(self) -> int:
        """Memory of its tensors."""
        return sum(part.nbytes for part in (self.data, self.scales, self.bias, self.counters) if part is not None)
