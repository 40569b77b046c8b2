"""The definition, expert by expert in float32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from compute_svc.kernels.activation import Activation, activate
from compute_svc.kernels.grouped_mlp.packed import Clamp


def grouped_mlp(
    x: torch.Tensor,
    weights: torch.Tensor,
    chosen: torch.Tensor,
    experts: Iterable[Sequence[tuple[torch.Tensor, torch.Tensor | None]]],
    activation: Activation,
    clamp: Clamp | None,
) -> torch.Tensor:
    """See the public function; experts are gate, up and down, each numbers [N, K] and a bias [N]. Nothing is rounded in between."""
    total = x.new_zeros(x.shape, dtype=torch.float32)
    for number, expert in enumerate(experts):
        tokens, places = (chosen == number).nonzero(as_tuple=True)
        (gate, gate_bias), (up, up_bias), (down, down_bias) = (
            (weight.float(), None if bias is None else bias.float()) for weight, bias in expert
        )
        rows = x.float()[tokens]
        gates, ups = F.linear(rows, gate, gate_bias), F.linear(rows, up, up_bias)
        if clamp is None:
            hidden = activate(gates, activation) * ups
        else:
            gates, ups = gates.clamp(max=clamp.limit), ups.clamp(-clamp.limit, clamp.limit)
            hidden = gates * torch.sigmoid(clamp.alpha * gates) * (ups + 1.0)
        total.index_add_(0, tokens, F.linear(hidden, down, down_bias) * weights[tokens, places, None])
    return total
