"""Matrix products with a model's weights."""

from __future__ import annotations

import torch

from compute_svc.kernels.backend import backend_for, is_batch_invariant
from compute_svc.kernels.linear import aten, cpu, fp8, groups, ints, native
from compute_svc.kernels.linear.ints import ActivationFormat
from compute_svc.kernels.linear.weight import Activation, LinearWeight
from compute_svc.kernels.quantise_rows import Norm as RowNorm
from compute_svc.kernels.rms_norm import rms_norm
from compute_svc.kernels.row_linear import row_linear, takes_row
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.stored_weight import StoredWeight

__all__ = [
    "MIN_ROWS",
    "Activation",
    "ActivationFormat",
    "LinearWeight",
    "RowNorm",
    "is_whole_mlp",
    "linear",
    "pack_linear",
    "pack_stored",
    "pad_rows",
    "padded_count",
    "takes_norm",
    "whole_mlp",
]

# On a CPU oneDNN's product of one row goes through other code than a product of many, and rounds differently.
MIN_ROWS = 2


def padded_count(num_rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """The number of rows to compute in place of `num_rows`: one of few, at most a few percent more of what a product costs.

    One row stays alone where products of floats of the dtype are the native library's.

    Each new number of rows makes oneDNN write code, which takes longer than the product, and keep it: with every number from 1 to 512 a
    model of 8 MB came to 1 GB. What a row gets does not depend on the others, so the rest may be anything.
    """
    if num_rows <= 8:
        least = 1 if device.type == "cpu" and native.takes_floats(dtype) else MIN_ROWS
        return max(least, 1 << (num_rows - 1).bit_length()) if num_rows else least
    step = 8 if num_rows <= 64 else 32 if num_rows <= 512 else 128
    return -(-num_rows // step) * step


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> LinearWeight:
    """Lays a weight out for the backend that will multiply by it.

    Args:
        weight: [N, K], floating.
        bias: [N], weight's dtype.
    """
    if backend_for("linear", weight.device.type) == "cpu":
        return cpu.pack_linear(weight, bias)
    return LinearWeight.plain(weight, bias)


def pack_stored(
    weight: StoredWeight, bias: torch.Tensor | None, dtype: torch.dtype, activations: ActivationFormat = "float"
) -> LinearWeight:
    """As `pack_linear`, of a weight as a checkpoint stores it: integers where a kernel multiplies by them, else the numbers that they stand for.

    Args:
        weight: N outputs of K inputs.
        bias: [N], of `dtype`.
        dtype: Of activations.
        activations: Whether integers are multiplied by rounded ones.
    """
    if isinstance(weight, CodedWeight) and ints.takes_ints(weight, activations):
        return ints.pack(weight, bias)
    if isinstance(weight, CodedWeight) and groups.takes_groups(weight):
        return groups.pack(weight, bias)
    if isinstance(weight, CodedWeight) and fp8.takes_fp8(weight, activations):
        return fp8.pack(weight, bias)
    return pack_linear(weight.dense(dtype), bias)


def takes_norm(weight: LinearWeight) -> bool:
    """Whether `linear` takes a norm, and normalises in the same launch at least where there is one row."""
    if weight.layout == "panels":
        return True
    if weight.layout == "plain":
        return backend_for("row_linear", weight.data.device.type, has_triton=True) == "triton" and not is_batch_invariant()
    return ints.takes_norm(weight)


def linear(
    x: torch.Tensor,
    weight: LinearWeight,
    *,
    activation: Activation = "none",
    add: torch.Tensor | None = None,
    norm: RowNorm | None = None,
) -> torch.Tensor:
    """activation(x W^T + bias) (+ add), products summed in float32; rows of x are rounded to int8 or float8 in the layouts "ints" and "fp8".

    With oneDNN's layout, the native library's, with integers, and where `backend.is_batch_invariant`, a row of the result depends on the same
    row of the arguments alone, bit for bit. One row alone has a kernel of its own on a device (kernels/row_linear).

    Args:
        x: [M, K], the weight's dtype. In oneDNN's layout fewer than `MIN_ROWS` rows cost two copies more.
        weight: N outputs of K inputs.
        activation: Applied to each output; not together with `add`.
        add: [M, N], x's dtype.
        norm: Of x's rows before; only of a weight that `takes_norm`.

    Returns:
        [M, N], x's dtype, in new memory or in that of `add`.

    Effects: may write `add`.

    Raises:
        ValueError: x does not have K columns.
    """
    if x.shape[1] != weight.in_features:
        raise ValueError(f"x has {x.shape[1]} columns, the weight takes {weight.in_features}")
    assert add is None or activation == "none", "a sum is not activated"
    if weight.layout == "ints":
        return ints.linear(x, weight, activation, add, norm)
    if weight.layout == "panels":
        return native.linear(x, weight, activation, add, norm)
    if weight.layout == "plain" and takes_row(x):
        return row_linear(x, weight.data, weight.bias, activation=activation, add=add, norm=norm)
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    if weight.layout == "groups":
        return groups.linear(x, weight, activation, add)
    if weight.layout == "fp8":
        return fp8.linear(x, weight, activation, add)
    if x.shape[0] < MIN_ROWS and x.device.type == "cpu":
        return linear(pad_rows(x), weight, activation=activation, add=None if add is None else pad_rows(add))[: x.shape[0]]
    backend = backend_for("linear", x.device.type, has_triton=is_batch_invariant())
    if backend == "cpu":
        return cpu.linear(x, weight, activation, add)
    if backend == "triton":
        from compute_svc.kernels.linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        return triton_kernel.linear(x, weight, activation, add)
    return aten.linear(x, weight, activation, add)


def is_whole_mlp(gate: LinearWeight | None, up: LinearWeight, down: LinearWeight) -> bool:
    """Whether `whole_mlp` computes an MLP of these weights."""
    return native.is_float_mlp(gate, up, down) or ints.is_int_mlp(gate, up, down)


def whole_mlp(
    x: torch.Tensor,
    gate: LinearWeight | None,
    up: LinearWeight,
    down: LinearWeight,
    activation: Activation,
    *,
    norm: RowNorm | None = None,
    add: torch.Tensor | None = None,
) -> torch.Tensor:
    """down(activation(gate(x)) * up(x)) (+ add), or down(activation(up(x))) without a gate, in one call.

    Args:
        x: [M, K].
        gate: [N, K]; None = none.
        up: [N, K].
        down: [L, N].
        activation: Of the gate, or of up without one.
        norm: Of x's rows before.
        add: [M, L], x's dtype.

    Returns:
        [M, L], x's dtype.

    Raises:
        ValueError: x does not have K columns.
    """
    if x.shape[1] != up.in_features:
        raise ValueError(f"x has {x.shape[1]} columns, the weights take {up.in_features}")
    if up.layout == "panels":
        return native.float_mlp(x, gate, up, down, activation, norm, add)
    return ints.int_mlp(x, gate, up, down, activation, norm=norm, add=add)


def pad_rows(x: torch.Tensor) -> torch.Tensor:
    """x with zero rows added up to `MIN_ROWS`."""
    missing = MIN_ROWS - x.shape[0]
    return x if missing <= 0 else torch.cat((x, x.new_zeros((missing, *x.shape[1:]))))
