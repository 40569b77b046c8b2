"""Mixtures of experts: MLPs of which each row goes through some, without the host knowing which; on devices alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.grouped_mlp import aten
from compute_svc.kernels.grouped_mlp.packed import Clamp, GroupedMlps, GroupedWeight, group_weights
from compute_svc.kernels.linear import LinearWeight

__all__ = ["Clamp", "GroupedMlps", "GroupedWeight", "group_mlps", "group_weights", "grouped_mlp"]


def group_mlps(
    into: Sequence[Sequence[LinearWeight]], down: Sequence[LinearWeight], activation: Activation, clamp: Clamp | None = None
) -> GroupedMlps | None:
    """All experts together, as `grouped_mlp` takes them; None where they are computed one after the other: on a CPU, and where no kernel takes them.

    Args:
        into: The gate and the up of each.
        down: Of each.
        activation: Of the gates.
        clamp: See `GroupedMlps`.

    Returns:
        A copy: let go of those given.
    """
    device = down[0].data.device
    if device.type == "cpu":
        return None
    is_triton = backend_for("grouped_mlp", device.type, has_triton=True) == "triton"
    if not is_triton and (clamp is not None or not aten.takes([weight for pair in into for weight in pair], down)):
        return None
    into_groups, down_groups = group_weights(into), group_weights([[weight] for weight in down])
    return None if into_groups is None or down_groups is None else GroupedMlps(into_groups, down_groups, activation, clamp)


def grouped_mlp(x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, mlps: GroupedMlps) -> torch.Tensor:
    """The sum of what each row's MLPs make of it, weighted, in the order of their numbers.

    An MLP is down(activation(gate(x)) * up(x)). Products are summed in float32; what goes into down, and what comes out of it, is rounded to
    x's dtype. Only weights of chosen MLPs are read. Where `backend.is_batch_invariant`, a row of the result depends on the same row of the
    arguments alone, bit for bit.

    Args:
        x: [P, hidden], of the dtype of the weights if these are numbers.
        weights: [P, per_row] float32, of the chosen MLPs.
        chosen: [P, per_row] int64, their numbers; those of a row differ.
        mlps: All of them.

    Returns:
        [P, hidden] float32, new memory.
    """
    if backend_for("grouped_mlp", x.device.type, has_triton=True) == "triton":
        from compute_svc.kernels.grouped_mlp import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        return triton_kernel.grouped_mlp(x, weights, chosen, mlps)
    return aten.grouped_mlp(x, weights, chosen, mlps)
