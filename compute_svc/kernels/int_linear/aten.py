"""torch's own operations: exact products of groups in floating point, then the same float32 operations in the same order."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation, activate
from compute_svc.kernels.int_linear.packed import PackedInts
from compute_svc.kernels.quantise_rows import QuantisedRows

# Products of an activation and a weight are at most 127 * 128, and below 2^24 all sums of them are exact in float32, in any order.
_EXACT_INPUTS = (1 << 24) // (127 * 128)


def int_linear(
    rows: QuantisedRows, weight: PackedInts, activation: Activation, add: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """See the public function; takes the plain layout."""
    result = activate(_product(rows, weight), activation)
    return (result if add is None else result.add_(add)).to(dtype)


def int_gated_linear(rows: QuantisedRows, gate: PackedInts, up: PackedInts, activation: Activation, dtype: torch.dtype) -> torch.Tensor:
    """See the public function; takes the plain layout."""
    return activate(_product(rows, gate), activation).mul_(_product(rows, up)).to(dtype)


def _product(rows: QuantisedRows, weight: PackedInts) -> torch.Tensor:
    """rows W^T + bias, [M, N] float32."""
    assert weight.layout == "plain", f"torch's products cannot read a weight in {weight.layout} layout"
    total = rows.scales.new_zeros((len(rows.scales), weight.out_features))
    for index, begin in enumerate(range(0, weight.in_features, weight.group)):
        codes = rows.codes[:, begin : begin + weight.group]
        row_scales = rows.scales[:, index % rows.scales.shape[1], None]
        total += _exact_product(codes, weight.data[:, begin : begin + weight.group]) * row_scales * weight.scales[:, index]
        if weight.offsets is not None:
            total += codes.sum(dim=1, keepdim=True, dtype=torch.float32) * row_scales * weight.offsets[:, index]
    return total if weight.bias is None else total.add_(weight.bias)


def _exact_product(codes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sums of integer products, exact and then rounded once to float32: [M, N]."""
    inputs = codes.shape[1]
    if inputs <= _EXACT_INPUTS:
        return codes.float() @ weight.float().t()
    total = torch.zeros((len(codes), len(weight)), dtype=torch.int32, device=codes.device)
    for begin in range(0, inputs, _EXACT_INPUTS):
        part = slice(begin, begin + _EXACT_INPUTS)
        total += (codes[:, part].float() @ weight[:, part].float().t()).to(torch.int32)
    return total.float()
