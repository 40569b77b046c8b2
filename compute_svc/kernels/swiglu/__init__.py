"""The gated half of a SwiGLU MLP."""

from __future__ import annotations

import torch

from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.linear import MIN_ROWS, LinearWeight, pad_rows
from compute_svc.kernels.swiglu import cpu, reference


def swiglu(x: torch.Tensor, gate: LinearWeight, up: LinearWeight) -> torch.Tensor:
    """silu(gate(x)) * up(x), products summed in float32.

    With oneDNN's layout a row of the result depends on the same row of x alone, bit for bit.

    Args:
        x: [M, K], the weights' dtype. Fewer than `MIN_ROWS` rows cost a copy more.
        gate: N outputs of K inputs.
        up: N outputs of K inputs.

    Returns:
        [M, N], x's dtype, new memory.

    Raises:
        ValueError: x does not have K columns.
    """
    if x.shape[1] != gate.in_features:
        raise ValueError(f"x has {x.shape[1]} columns, the weights take {gate.in_features}")
    if x.shape[0] < MIN_ROWS:
        return swiglu(pad_rows(x), gate, up)[: x.shape[0]]
    if backend_for("swiglu", x.device.type) == "cpu":
        return cpu.swiglu(x, gate, up)
    return reference.swiglu(x, gate, up)
