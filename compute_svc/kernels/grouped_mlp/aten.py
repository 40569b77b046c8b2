"""Three of torch's grouped products, of rows that are sorted by expert."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from compute_svc.kernels.activation import activate
from compute_svc.kernels.backend import is_batch_invariant
from compute_svc.kernels.grouped_mlp.packed import GroupedMlps
from compute_svc.kernels.linear import LinearWeight

# Rows of the factors must begin at multiples of this.
_ALIGNMENT_BYTES = 16

# Compute capabilities whose products take their groups from the device; with others torch reads them on the host, which waits.
_GROUPING_CAPABILITIES = (9, 10)


def takes(into: Sequence[LinearWeight], down: Sequence[LinearWeight]) -> bool:
    """Whether a device can multiply by these weights in groups without a wait; not where bits may not depend on how many rows a group has."""
    every = [*into, *down]
    is_plain = all(weight.layout == "plain" and weight.bias is None for weight in every)
    first = every[0]
    return is_plain and takes_groups(first.data.device, first.data.dtype, (first.in_features, first.out_features))


def takes_groups(device: torch.device, dtype: torch.dtype, sizes: Sequence[int]) -> bool:
    """Whether a device can multiply by groups without a wait.

    Args:
        device: Where the weights are.
        dtype: Of the weights.
        sizes: Their inputs and outputs.
    """
    if device.type != "cuda" or torch.version.hip is not None or is_batch_invariant() or dtype != torch.bfloat16:
        return False
    is_aligned = all(size * dtype.itemsize % _ALIGNMENT_BYTES == 0 for size in sizes)
    return is_aligned and torch.cuda.get_device_capability(device)[0] in _GROUPING_CAPABILITIES


def grouped_mlp(x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, mlps: GroupedMlps) -> torch.Tensor:
    """See the public function; takes numbers without biases, whose rows are multiples of 16 bytes. All operations round to x's dtype."""
    assert mlps.into.format == mlps.down.format == "float" and mlps.clamp is None, "torch multiplies numbers in groups"
    chosen, places = chosen.sort(dim=1)
    numbers, order = chosen.view(-1).sort(stable=True)
    ends = torch.searchsorted(numbers, torch.arange(mlps.count, device=x.device), right=True, out_int32=True)
    rows = x.index_select(0, order // chosen.shape[1])
    gate, up = mlps.into.data.tensor_split(2, dim=1)
    gated = activate(F.grouped_mm(rows, gate.transpose(1, 2), offs=ends), mlps.activation)
    gated.mul_(F.grouped_mm(rows, up.transpose(1, 2), offs=ends))
    answers = F.grouped_mm(gated, mlps.down.data.transpose(1, 2), offs=ends)
    # Back in the tokens' order before the sum: rows added to where they belong would be summed in whatever order the device comes to them.
    by_token = torch.empty_like(answers).index_copy_(0, order, answers).view(*chosen.shape, -1)
    return (by_token * weights.gather(1, places)[:, :, None]).sum(dim=1)
