"""Matrix products of int8 rows with integer weights."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.int_linear import aten, native
from compute_svc.kernels.int_linear.packed import PackedInts
from compute_svc.kernels.native import NativeLibrary, native_library
from compute_svc.kernels.quantise_rows import QuantisedRows

__all__ = ["PackedInts", "int_gated_linear", "int_linear", "pack_ints"]

# A group of another size would end between the inputs that are multiplied together.
_GROUP_STEP = 8


def pack_ints(
    codes: torch.Tensor,
    bits: int,
    group: int,
    scales: torch.Tensor,
    offsets: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    library: NativeLibrary | None = None,
) -> PackedInts:
    """Lays out integer weights for what will multiply by them: the native library, where there is one, or torch's own products.

    Args:
        codes: [N, K] int8; of 4 bits, all within -8..7 or all within 0..15.
        bits: Of a code, 4 or 8.
        group: Inputs that share a scale: a multiple of 8, or at least K. The last group may have fewer.
        scales: [N, G], floating.
        offsets: [N, G], added to code * scale; None = zero.
        bias: [N], floating; None = zero.
        library: Whose layout; default: that of this process, or none.

    Raises:
        ValueError: Sizes or codes are none of these.
    """
    _require_sizes(codes, bits, group, scales)
    if codes.device.type == "cpu":
        library = native_library() if library is None else library
        if library is not None:
            return native.pack_ints(codes, bits, group, scales, offsets, bias, library)
    return plain_ints(codes, bits, group, scales, offsets, bias)


def plain_ints(
    codes: torch.Tensor,
    bits: int,
    group: int,
    scales: torch.Tensor,
    offsets: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> PackedInts:
    """As `pack_ints`, for torch's own products, without copying the codes."""
    _require_sizes(codes, bits, group, scales)
    wide = [None if part is None else part.float() for part in (offsets, bias)]
    out_features, in_features = codes.shape
    return PackedInts("plain", bits, group, in_features, out_features, codes, scales.float(), *wide)


def _require_sizes(codes: torch.Tensor, bits: int, group: int, scales: torch.Tensor) -> None:
    out_features, in_features = codes.shape
    if bits not in (4, 8):
        raise ValueError(f"codes have {bits} bits, they can have 4 or 8")
    if group < in_features and (group < 1 or group % _GROUP_STEP):
        raise ValueError(f"groups have {group} inputs, they can have multiples of {_GROUP_STEP}, or all {in_features}")
    expected = (out_features, -(-in_features // group))
    if tuple(scales.shape) != expected:
        raise ValueError(f"scales are {tuple(scales.shape)}, groups of {group} of a weight {tuple(codes.shape)} have {expected}")
    if bits == 4:
        low, high = (int(end) for end in codes.aminmax())
        if not ((low >= -8 and high <= 7) or (low >= 0 and high <= 15)):
            raise ValueError(f"codes of 4 bits are from {low} to {high}, they can be from -8 to 7 or from 0 to 15")


def int_linear(
    rows: QuantisedRows,
    weight: PackedInts,
    *,
    activation: Activation = "none",
    add: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """activation(rows W^T + bias) (+ add).

    Sums over a group are exact integers. From there on every operation is rounded to float32 by itself, the groups in their order: first
    scale * sum is added and then, if there are offsets, offset * (sum of the row's codes); the total is multiplied by the row's scale; the
    bias is added, then comes the activation, then `add`; the end is rounded to dtype. So both layouts have the same bits, but for those of
    the activation, and a row of the result depends on the same row of the arguments alone, bit for bit.

    Args:
        rows: M rows of K inputs.
        weight: N outputs of K inputs.
        activation: Applied to each output.
        add: [M, N], dtype.
        dtype: Of the result, float32 or bfloat16.

    Returns:
        [M, N], new memory.

    Raises:
        ValueError: The rows do not have K inputs.
    """
    _require_inputs(rows, weight)
    if weight.layout == "native":
        return native.int_linear(rows, weight, activation, add, dtype)
    return aten.int_linear(rows, weight, activation, add, dtype)


def int_gated_linear(
    rows: QuantisedRows, gate: PackedInts, up: PackedInts, activation: Activation, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """activation(gate(rows)) * up(rows), each computed as `int_linear` does, multiplied in float32 and rounded once to dtype.

    Args:
        rows: M rows of K inputs.
        gate: N outputs of K inputs.
        up: As gate, with groups and bits of the same sizes.
        activation: Of the gate; silu makes it SwiGLU, gelu GeGLU.
        dtype: Of the result, float32 or bfloat16.

    Returns:
        [M, N], new memory.

    Raises:
        ValueError: The rows do not have K inputs, or the weights differ in their sizes.
    """
    _require_inputs(rows, gate)
    if _sizes(gate) != _sizes(up):
        raise ValueError(f"the gate is {_sizes(gate)}, up is {_sizes(up)}: they must be alike")
    if gate.layout == "native":
        return native.int_gated_linear(rows, gate, up, activation, dtype)
    return aten.int_gated_linear(rows, gate, up, activation, dtype)


def _require_inputs(rows: QuantisedRows, weight: PackedInts) -> None:
    if rows.codes.shape[1] != weight.in_features:
        raise ValueError(f"rows have {rows.codes.shape[1]} inputs, the weight takes {weight.in_features}")


def _sizes(weight: PackedInts) -> tuple[object, ...]:
    return weight.layout, weight.built_for, weight.bits, weight.group, weight.in_features, weight.out_features
