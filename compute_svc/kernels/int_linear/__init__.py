"""Matrix products of int8 rows with integer weights."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.int_linear import aten, native
from compute_svc.kernels.int_linear.packed import PackedInts, join_ints
from compute_svc.kernels.native import NativeLibrary, native_library
from compute_svc.kernels.quantise_rows import Norm, QuantisedRows, quantise_gated, quantise_rows, rms_norm_quantise

__all__ = [
    "LEAST_GROUP",
    "Norm",
    "PackedInts",
    "QuantisedRows",
    "int_gated_linear",
    "int_linear",
    "int_linear_of",
    "int_mlp",
    "join_ints",
    "pack_ints",
    "plain_ints",
]

# A group of another size would end between the inputs that are multiplied together.
_GROUP_STEP = 8

LEAST_GROUP = 32
"""Inputs in the groups that a device's kernel takes, or a multiple: as many as its matrix instructions."""


def pack_ints(
    codes: torch.Tensor,
    bits: int,
    group: int,
    scales: torch.Tensor,
    offsets: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    rows_in_groups: bool = False,
    library: NativeLibrary | None = None,
) -> PackedInts:
    """Lays out integer weights for what will multiply by them: the native library or the Triton kernel, where there is one, or torch's own products.

    Args:
        codes: [N, K] int8; of 4 bits, all within -8..7 or all within 0..15.
        bits: Of a code, 4 or 8.
        group: Inputs that share a scale: a multiple of 8, or at least K. The last group may have fewer.
        scales: [N, G], floating.
        offsets: [N, G], added to code * scale; None = zero.
        bias: [N], floating; None = zero.
        rows_in_groups: Whether `int_linear_of` and `int_mlp` quantise rows for it with a scale for each of its groups, or with one for all.
        library: Whose layout; default: that of this process, or none.

    Raises:
        ValueError: Sizes or codes are none of these.
    """
    _require_sizes(codes, bits, group, scales)
    if codes.device.type == "cpu":
        library = native_library() if library is None else library
        if library is not None:
            return native.pack_ints(codes, bits, group, scales, offsets, bias, rows_in_groups, library)
    plain = plain_ints(codes, bits, group, scales, offsets, bias, rows_in_groups=rows_in_groups)
    if backend_for("int_linear", codes.device.type, has_triton=True) == "triton":
        from compute_svc.kernels.int_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        return triton_kernel.lay_out(plain) if _device_takes(plain) else plain
    return plain


def plain_ints(
    codes: torch.Tensor,
    bits: int,
    group: int,
    scales: torch.Tensor,
    offsets: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    rows_in_groups: bool = False,
) -> PackedInts:
    """As `pack_ints`, for torch's own products, without copying the codes."""
    _require_sizes(codes, bits, group, scales)
    out_features, in_features = codes.shape
    return PackedInts(
        layout="plain",
        bits=bits,
        group=group,
        in_features=in_features,
        out_features=out_features,
        data=codes,
        scales=scales.float(),
        offsets=None if offsets is None else offsets.float(),
        bias=None if bias is None else bias.float(),
        rows_in_groups=rows_in_groups,
    )


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


def _device_takes(plain: PackedInts) -> bool:
    return plain.scales.shape[1] == 1 or (plain.offsets is None and plain.group % LEAST_GROUP == 0)


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
    (sum of products * the row's scale) * scale is added and then, if there are offsets, (sum of the row's codes * the row's scale) * offset;
    then the bias, the activation, and `add`; the end is rounded to dtype. So all layouts of a CPU have the same bits, but for those of the
    activation, and a row of the result depends on the same row of the arguments alone, bit for bit. The Triton kernel multiplies by a row's one
    scale in the end, once for all groups.

    Args:
        rows: M rows of K inputs, with one scale or as many as the weight has groups.
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
    if weight.layout == "triton":
        from compute_svc.kernels.int_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        return triton_kernel.int_linear(rows, weight, activation, add, dtype)
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
    _require_alike(gate, up)
    if gate.layout == "native":
        return native.int_gated_linear(rows, gate, up, activation, dtype)
    if gate.layout == "triton":
        from compute_svc.kernels.int_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        return triton_kernel.int_gated_linear(rows, gate, up, activation, dtype)
    return aten.int_gated_linear(rows, gate, up, activation, dtype)


def int_linear_of(
    x: torch.Tensor,
    weight: PackedInts,
    *,
    norm: Norm | None = None,
    activation: Activation = "none",
    add: torch.Tensor | None = None,
) -> torch.Tensor:
    """`int_linear` of x's rows as `quantise_rows` has them, or `rms_norm_quantise` if there is a norm; the same bits in one call.

    The weight says whether they are quantised in its groups.

    Args:
        x: [M, K], float32 or bfloat16.
        weight: N outputs of K inputs.
        norm: Of K numbers; None = x is not normalised.
        activation: Applied to each output.
        add: [M, N], x's dtype.

    Returns:
        [M, N], x's dtype, new memory.

    Raises:
        ValueError: x does not have K columns.
    """
    _require_columns(x, weight)
    if weight.layout == "native":
        return native.int_linear_of(x, weight, norm, activation, add)
    return int_linear(_quantise(x, norm, weight.row_group), weight, activation=activation, add=add, dtype=x.dtype)


def int_mlp(
    x: torch.Tensor,
    gate: PackedInts | None,
    up: PackedInts,
    down: PackedInts,
    activation: Activation,
    *,
    norm: Norm | None = None,
    add: torch.Tensor | None = None,
) -> torch.Tensor:
    """down(activation(gate(x)) * up(x)) (+ add), or down(activation(up(x))) without a gate, in one call.

    x is quantised as `int_linear_of` does; what goes into down is quantised from float32, after products that are rounded to x's dtype where gate
    and up are joined.

    Args:
        x: [M, K], float32 or bfloat16.
        gate: As up, with groups and bits of the same sizes; None = there is none.
        up: N outputs of K inputs.
        down: H outputs of N inputs.
        activation: Of the gate, or of up without one.
        norm: Of K numbers; None = x is not normalised.
        add: [M, H], x's dtype.

    Returns:
        [M, H], x's dtype, new memory.

    Raises:
        ValueError: x does not have K columns, or the weights do not fit each other.
    """
    _require_columns(x, up)
    if down.in_features != up.out_features:
        raise ValueError(f"down takes {down.in_features} inputs, up has {up.out_features} outputs")
    if gate is not None:
        _require_alike(gate, up)
    if up.layout == down.layout == "native" and up.built_for == down.built_for:
        return native.int_mlp(x, gate, up, down, activation, norm, add)
    rows = _quantise(x, norm, up.row_group)
    if gate is not None and gate.joined is not None and gate.joined is up.joined and down.row_group is None:
        both = int_linear(rows, gate.joined, dtype=x.dtype)
        return int_linear(quantise_gated(both, activation), down, add=add, dtype=x.dtype)
    hidden = int_linear(rows, up, activation=activation) if gate is None else int_gated_linear(rows, gate, up, activation)
    return int_linear(quantise_rows(hidden, down.row_group), down, add=add, dtype=x.dtype)


def _quantise(x: torch.Tensor, norm: Norm | None, group: int | None) -> QuantisedRows:
    return quantise_rows(x, group) if norm is None else rms_norm_quantise(x, norm, group)


def _require_columns(x: torch.Tensor, weight: PackedInts) -> None:
    if x.shape[1] != weight.in_features:
        raise ValueError(f"x has {x.shape[1]} columns, the weight takes {weight.in_features}")


def _require_alike(gate: PackedInts, up: PackedInts) -> None:
    if _sizes(gate) != _sizes(up):
        raise ValueError(f"the gate is {_sizes(gate)}, up is {_sizes(up)}: they must be alike")


def _require_inputs(rows: QuantisedRows, weight: PackedInts) -> None:
    if rows.codes.shape[1] != weight.in_features:
        raise ValueError(f"rows have {rows.codes.shape[1]} inputs, the weight takes {weight.in_features}")
    if rows.scales.shape[1] not in (1, -(-weight.in_features // weight.group)):
        raise ValueError(
            f"rows have {rows.scales.shape[1]} scales, not one nor one for each group of {weight.group} of {weight.in_features}"
        )


def _sizes(weight: PackedInts) -> tuple[object, ...]:
    return weight.layout, weight.built_for, weight.bits, weight.group, weight.row_group, weight.in_features, weight.out_features
