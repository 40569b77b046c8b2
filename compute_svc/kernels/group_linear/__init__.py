"""Matrix products of floating rows with weights of integers, or of a table's values, that are made numbers in registers; on devices that Triton compiles for."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.group_linear.packed import LEAST_GROUP, GroupedCodes, pack_groups

__all__ = ["LEAST_GROUP", "GroupedCodes", "group_gated_linear", "group_linear", "pack_groups"]


def group_linear(
    x: torch.Tensor, weight: GroupedCodes, *, activation: Activation = "none", add: torch.Tensor | None = None
) -> torch.Tensor:
    """activation(x W^T + bias) (+ add).

    Products of x and codes are summed in float32 over a group and then scaled, so weights are not rounded, only values of a table to x's dtype;
    the result is rounded once.

    Args:
        x: [M, K], float32, bfloat16 or float16.
        weight: N outputs of K inputs.
        activation: Applied to each output.
        add: [M, N], x's dtype.

    Returns:
        [M, N], x's dtype, new memory.

    Raises:
        ValueError: x does not have K columns.
    """
    _require_columns(x, weight)
    from compute_svc.kernels.group_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    return triton_kernel.group_linear(x, weight, activation, add, x.dtype)


def group_gated_linear(x: torch.Tensor, gate: GroupedCodes, up: GroupedCodes, activation: Activation) -> torch.Tensor:
    """activation(gate(x)) * up(x), each computed as `group_linear` does, multiplied in float32 and rounded once.

    Args:
        x: [M, K], float32, bfloat16 or float16.
        gate: N outputs of K inputs.
        up: N outputs of K inputs.
        activation: Of the gate; silu makes it SwiGLU, gelu GeGLU.

    Returns:
        [M, N], x's dtype, new memory.

    Raises:
        ValueError: x does not have K columns.
    """
    _require_columns(x, gate)
    _require_columns(x, up)
    from compute_svc.kernels.group_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    activated = triton_kernel.group_linear(x, gate, activation, None, torch.float32)
    return triton_kernel.group_linear(x, up, "none", activated, x.dtype, multiply=True)


def _require_columns(x: torch.Tensor, weight: GroupedCodes) -> None:
    if x.shape[1] != weight.in_features:
        raise ValueError(f"x has {x.shape[1]} columns, the weight takes {weight.in_features}")
