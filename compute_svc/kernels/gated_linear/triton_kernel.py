"""Products by cuBLAS, or by kernels/linear where bits may not depend on the batch; one where both weights lie in one tensor; then the activation and the multiplication in one kernel, rounded once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from compute_svc.kernels.backend import is_batch_invariant
from compute_svc.kernels.gated_linear.joined import joined
from compute_svc.kernels.linear import Activation, LinearWeight
from compute_svc.kernels.linear.triton_kernel import multiply
from compute_svc.kernels.triton_parts import INTERPRETED, TL_DTYPES, activated, rounded

# Numbers of a row that a program takes; 8 to a thread.
_BLOCK, _WARPS = 1024, 4


@triton.jit
def gate_kernel(
    gate,
    up,
    out,
    columns,
    gate_stride,
    up_stride,
    ACTIVATION: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """gate and up [rows, columns] with rows so far apart, out contiguous; a grid of rows and of blocks of columns."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < columns
    gates = tl.load(gate + row * gate_stride + place, mask=inside, other=0.0).to(tl.float32)
    ups = tl.load(up + row * up_stride + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * columns + place, rounded(activated(gates, ACTIVATION) * ups, DTYPE, INTERPRETED), mask=inside)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """activation(gate) * up, computed in float32 and rounded once.

    Args:
        gate: [M, N], floating; rows may lie apart.
        up: [M, N], gate's dtype; so may these.
        activation: Of the gate.

    Returns:
        [M, N], gate's dtype, new memory.
    """
    rows, columns = gate.shape
    out = torch.empty((rows, columns), dtype=gate.dtype, device=gate.device)
    if rows == 0:
        return out
    gate_kernel[(rows, triton.cdiv(columns, _BLOCK))](
        gate,
        up,
        out,
        columns,
        gate.stride(0),
        up.stride(0),
        ACTIVATION=activation,
        DTYPE=TL_DTYPES[gate.dtype],
        BLOCK=_BLOCK,
        INTERPRETED=INTERPRETED,
        num_warps=_WARPS,
    )
    return out


def gated_linear(x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation) -> torch.Tensor:
    """See the public function; takes the plain layout."""
    assert gate.layout == up.layout == "plain", f"torch's products cannot read weights in {gate.layout} and {up.layout} layout"
    product = multiply if is_batch_invariant() else F.linear
    both = joined(gate, up)
    if both is None:
        return gated(product(x, gate.data, gate.bias), product(x, up.data, up.bias), activation)
    products = product(x, both.data, both.bias)  # [M, 2N]
    return gated(products[:, : gate.out_features], products[:, gate.out_features :], activation)
