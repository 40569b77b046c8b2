"""Many MLPs in three products, each row by the weights of its own, without the host knowing how many rows each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from compute_svc.kernels.activation import Activation, activate
from compute_svc.kernels.backend import is_batch_invariant

# Rows of the factors must begin at multiples of this.
_ALIGNMENT_BYTES = 16

# Compute capabilities whose products take their groups from the device; with others torch reads them on the host, which waits.
_GROUPING_CAPABILITIES = (9, 10)


@dataclass(frozen=True, slots=True, eq=False)
class GroupedMlps:
    """E gated MLPs without biases.

    Attributes:
        gate: [E, width, hidden].
        up: [E, width, hidden].
        down: [E, hidden, width].
        activation: Of the gates.
    """

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    activation: Activation


def takes_groups(device: torch.device, dtype: torch.dtype, sizes: Sequence[int]) -> bool:
    """Whether a device can multiply by groups without a wait; not where bits may not depend on how many rows a group has.

    Args:
        device: Where the weights are.
        dtype: Of the weights.
        sizes: Their inputs and outputs.
    """
    if device.type != "cuda" or torch.version.hip is not None or is_batch_invariant() or dtype != torch.bfloat16:
        return False
    is_aligned = all(size * dtype.itemsize % _ALIGNMENT_BYTES == 0 for size in sizes)
    return is_aligned and torch.cuda.get_device_capability(device)[0] in _GROUPING_CAPABILITIES


def grouped_mlp(x: torch.Tensor, ends: torch.Tensor, mlps: GroupedMlps) -> torch.Tensor:
    """down(activation(gate(x)) * up(x)) of each row's MLP; products are summed in float32 and rounded, as `gated_linear` on a device.

    Args:
        x: [M, hidden], the weights' dtype: the first MLP's rows, then the second's, and so on.
        ends: [E] int32, where each MLP's rows end; the last is M.
        mlps: E of them; rows of their weights are multiples of 16 bytes.

    Returns:
        [M, hidden], x's dtype, new memory.
    """
    gated = activate(F.grouped_mm(x, mlps.gate.transpose(1, 2), offs=ends), mlps.activation)
    gated.mul_(F.grouped_mm(x, mlps.up.transpose(1, 2), offs=ends))
    return F.grouped_mm(gated, mlps.down.transpose(1, 2), offs=ends)
