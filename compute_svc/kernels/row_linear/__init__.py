"""Matrix products of one row on devices: as fast as the weight is read, with what comes before and behind in the same launch."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.backend import backend_for, is_batch_invariant
from compute_svc.kernels.quantise_rows import Norm, QuantisedRows

__all__ = ["row_code_linear", "row_gated_linear", "row_linear", "takes_row"]


def takes_row(x: torch.Tensor) -> bool:
    """Whether products of x are these: it is one row, on a device with the kernel, whose bits may be others than those of the same row among many."""
    return x.shape[0] == 1 and not is_batch_invariant() and backend_for("row_linear", x.device.type, has_triton=True) == "triton"


def row_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    activation: Activation = "none",
    add: torch.Tensor | None = None,
    norm: Norm | None = None,
) -> torch.Tensor:
    """activation(norm(x) W^T + bias) + add, in float32 from x to the end, where it is rounded once.

    Args:
        x: [1, K], of which `takes_row` says yes.
        weight: [N, K], x's dtype, contiguous.
        bias: [N]; None = zero.
        activation: Applied to each output.
        add: [1, N], x's dtype; None = zero.
        norm: Of x; None = x is not normalised.

    Returns:
        [1, N], x's dtype, new memory.
    """
    from compute_svc.kernels.row_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    return triton_kernel.multiply(x, weight, bias, activation, add, norm)


def row_gated_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation, *, norm: Norm | None = None
) -> torch.Tensor:
    """activation(gate) * up, where gate and up are the halves of norm(x) W^T + bias, in float32 from x to the end, where it is rounded once.

    Args:
        x: [1, K], of which `takes_row` says yes.
        weight: [2N, K], x's dtype, contiguous.
        bias: [2N]; None = zero.
        activation: Of the gate.
        norm: Of x; None = x is not normalised.

    Returns:
        [1, N], x's dtype, new memory.
    """
    from compute_svc.kernels.row_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    return triton_kernel.multiply_gated(x, weight, bias, activation, norm)


def row_code_linear(
    row: QuantisedRows,
    weight: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    activation: Activation = "none",
    add: torch.Tensor | None = None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """activation(row W^T + bias) + add, of codes of 8 bits; of integers the bits of `int_linear`, whose sums are exact too.

    Args:
        row: One row of K codes with one scale, of which `takes_row` says yes.
        weight: [N, K], contiguous, codes as the row's: int8, of which K is a multiple of 4, or float8_e4m3fn, whose products are summed in float32.
        scales: [N, 1] float32.
        bias: [N] floating; None = zero.
        activation: Applied to each output.
        add: [1, N], dtype; None = zero.
        dtype: Of the result.

    Returns:
        [1, N], dtype, new memory.
    """
    from compute_svc.kernels.row_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    return triton_kernel.multiply_codes(row, weight, scales, bias, activation, add, dtype)
