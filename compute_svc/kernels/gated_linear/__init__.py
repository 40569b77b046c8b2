"""The gated half of an MLP."""

from __future__ import annotations

import torch

from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.gated_linear import aten, cpu
from compute_svc.kernels.gated_linear.joined import join, joined
from compute_svc.kernels.linear import MIN_ROWS, Activation, LinearWeight, RowNorm, fp8, groups, ints, linear, native, pad_rows
from compute_svc.kernels.rms_norm import rms_norm
from compute_svc.kernels.row_linear import row_gated_linear, takes_row


def gated_linear(
    x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation, *, norm: RowNorm | None = None
) -> torch.Tensor:
    """activation(gate(x)) * up(x), products summed in float32.

    With oneDNN's layout, the native library's, and with integers, a row of the result depends on the same row of x alone, bit for bit.

    Args:
        x: [M, K], the weights' dtype. In oneDNN's layout fewer than `MIN_ROWS` rows cost a copy more.
        gate: N outputs of K inputs.
        up: N outputs of K inputs.
        activation: Of the gate; silu makes it SwiGLU, gelu GeGLU.
        norm: Of x's rows before; only of weights of floats that `takes_norm`.

    Returns:
        [M, N], x's dtype, new memory.

    Raises:
        ValueError: x does not have K columns.
    """
    if x.shape[1] != gate.in_features:
        raise ValueError(f"x has {x.shape[1]} columns, the weights take {gate.in_features}")
    if {gate.layout, up.layout} & {"ints", "groups", "fp8"}:
        assert norm is None, "of other weights the products of gate and up take normalised rows"
        if ints.go_together(gate, up):
            return ints.gated_linear(x, gate, up, activation)
        if groups.go_together(gate, up):
            return groups.gated_linear(x, gate, up, activation)
        if fp8.go_together(gate, up):
            return fp8.gated_linear(x, gate, up, activation)
        return linear(x, gate, activation=activation).mul_(linear(x, up))
    if gate.layout == "panels":
        return native.gated_linear(x, gate, up, activation, norm)
    if takes_row(x) and (both := joined(gate, up)) is not None:
        return row_gated_linear(x, both.data, both.bias, activation, norm=norm)
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    if x.shape[0] < MIN_ROWS and x.device.type == "cpu":
        return gated_linear(pad_rows(x), gate, up, activation)[: x.shape[0]]
    backend = backend_for("gated_linear", x.device.type, has_triton=True)
    if backend == "cpu":
        return cpu.gated_linear(x, gate, up, activation)
    if backend == "triton":
        from compute_svc.kernels.gated_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        return triton_kernel.gated_linear(x, gate, up, activation)
    return aten.gated_linear(x, gate, up, activation)


def lay_out_gated(gate: LinearWeight, up: LinearWeight) -> tuple[LinearWeight, LinearWeight]:
    """The weights as `gated_linear` multiplies by them fastest: where its kernel takes one product of both, in one tensor.

    That is a copy: let go of those given.
    """
    if gate.layout == up.layout == "ints":
        return ints.join(gate, up)
    is_joined = gate.layout == "plain" and backend_for("gated_linear", gate.data.device.type, has_triton=True) == "triton"
    return join(gate, up) if is_joined else (gate, up)
