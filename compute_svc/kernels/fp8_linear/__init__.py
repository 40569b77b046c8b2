"""Matrix products of float8 rows with float8 weights; on devices that have instructions for them."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.device_features import has_float8
from compute_svc.kernels.fp8_linear.packed import LEAST_GROUP, Fp8Weight
from compute_svc.kernels.quantise_rows import QuantisedRows

__all__ = ["LEAST_GROUP", "Fp8Weight", "fp8_gated_linear", "fp8_linear", "has_fp8_products", "pack_fp8", "quantise_rows_to_fp8"]


def has_fp8_products(device: torch.device) -> bool:
    """Whether a device multiplies float8."""
    return backend_for("fp8_linear", device.type, has_triton=True) == "triton" and has_float8(device)


def pack_fp8(codes: torch.Tensor, group: int, scales: torch.Tensor, bias: torch.Tensor | None = None) -> Fp8Weight:
    """Lays a weight out.

    Args:
        codes: [N, K] float8_e4m3fn.
        group: Inputs that share a scale: a multiple of `LEAST_GROUP`, or at least K.
        scales: [N, G], floating.
        bias: [N], floating; None = zero.

    Raises:
        ValueError: The group is none of these.
    """
    from compute_svc.kernels.fp8_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    if group < codes.shape[1] and group % LEAST_GROUP:
        raise ValueError(f"groups have {group} inputs, they can have multiples of {LEAST_GROUP}, or all {codes.shape[1]}")
    return triton_kernel.lay_out(codes, min(group, codes.shape[1]), scales.float(), bias)


def quantise_rows_to_fp8(x: torch.Tensor, group: int | None = None) -> QuantisedRows:
    """Quantises each row, or each group of it, by itself: scale = max |x| / 448, code = x / scale rounded to float8_e4m3fn, half to even.

    A group of zeros has scale 0 and codes 0. A group that is not finite has codes 0 and a scale that is not finite.

    Args:
        x: [M, K], floating.
        group: Inputs that share a scale, a power of two; the last group may have fewer. None = all of a row.

    Returns:
        Codes in float8_e4m3fn.
    """
    from compute_svc.kernels.fp8_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    return triton_kernel.quantise_rows_to_fp8(x, group)


def fp8_linear(x: torch.Tensor, weight: Fp8Weight, *, activation: Activation = "none", add: torch.Tensor | None = None) -> torch.Tensor:
    """activation(x W^T + bias) (+ add), of x's rows as `quantise_rows_to_fp8` has them, in the weight's groups where these are powers of two.

    Products are summed over at most 128 inputs by the matrix unit, which has fewer bits than float32, and from there on in float32; sums are
    scaled, and the end is rounded once. Many rows in bfloat16, by a weight with one scale for each output, are multiplied by torch, which sums
    over all inputs in the matrix unit and rounds before it activates and adds, too (scaled_mm.py); not where `backend.is_batch_invariant`.

    Args:
        x: [M, K], floating.
        weight: N outputs of K inputs.
        activation: Applied to each output.
        add: [M, N], x's dtype.

    Returns:
        [M, N], x's dtype, new memory.

    Raises:
        ValueError: x does not have K columns.
    """
    _require_columns(x, weight)
    from compute_svc.kernels.fp8_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    return triton_kernel.fp8_linear(x, weight, activation, add)


def fp8_gated_linear(x: torch.Tensor, gate: Fp8Weight, up: Fp8Weight, activation: Activation) -> torch.Tensor:
    """activation(gate(x)) * up(x), each computed as `fp8_linear` does, multiplied in float32 and rounded once, torch's products before as well.

    Args:
        x: [M, K], floating.
        gate: N outputs of K inputs.
        up: N outputs of K inputs, in groups of the same size.
        activation: Of the gate; silu makes it SwiGLU, gelu GeGLU.

    Returns:
        [M, N], x's dtype, new memory.

    Raises:
        ValueError: x does not have K columns.
    """
    _require_columns(x, gate)
    _require_columns(x, up)
    from compute_svc.kernels.fp8_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    return triton_kernel.fp8_gated_linear(x, gate, up, activation)


def _require_columns(x: torch.Tensor, weight: Fp8Weight) -> None:
    if x.shape[1] != weight.in_features:
        raise ValueError(f"x has {x.shape[1]} columns, the weight takes {weight.in_features}")
