"""The definition, in float64."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation, activate


def group_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    group: int,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    bias: torch.Tensor | None,
    activation: Activation,
    add: torch.Tensor | None,
) -> torch.Tensor:
    """[M, N] float64; codes [N, K], scales and offsets [N, G], otherwise see the public function."""
    of_input = torch.arange(codes.shape[1]) // group
    weight = codes.double() * scales.double()[:, of_input]
    if offsets is not None:
        weight += offsets.double()[:, of_input]
    result = x.double() @ weight.t()
    if bias is not None:
        result += bias.double()
    result = activate(result, activation)
    return result if add is None else result + add.double()
