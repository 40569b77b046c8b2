"""Rows to float8, one program each; products by the kernel of kernels/int_linear, which multiplies codes of 8 bits of both kinds, or by torch's."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.fp8_linear import scaled_mm
from compute_svc.kernels.fp8_linear.packed import Fp8Weight
from compute_svc.kernels.gated_linear.triton_kernel import gated
from compute_svc.kernels.int_linear.triton_kernel import Codes, by_groups, empty_by_groups, multiply, new_counters
from compute_svc.kernels.quantise_rows import QuantisedRows
from compute_svc.kernels.row_linear import row_code_linear, takes_row
from compute_svc.kernels.triton_parts import INTERPRETED, magnitude_bits


@triton.jit
def to_fp8(x, INTERPRETED: tl.constexpr):
    """float32 up to 448 in magnitude to float8_e4m3fn, half to even. The interpreter loses carries: it is given numbers that are there already."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
        # Below 2^-6 numbers are multiples of 2^-9: those of 1.5 * 2^14 in float32, too.
        small = (x + 24576.0) - 24576.0
        x = tl.where(tl.abs(x) < 0.015625, small, normal)
    return x.to(tl.float8e4nv)


@triton.jit
def quantise_rows_to_fp8_kernel(
    x, codes, scales, columns, x_stride, num_groups, row_stride, group_stride,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """x [rows, columns] with rows x_stride apart, codes contiguous, scales [rows, num_groups] with these strides; a grid of rows, GROUPS by GROUP
    cover one."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS)
    place = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = place < columns
    numbers = tl.load(x + row * x_stride + place, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(magnitude_bits(numbers), axis=1)
    scale = tl.div_rn(largest.to(tl.float32, bitcast=True), 448.0)
    usable = (scale > 0.0) & (largest < 0x7F800000)
    quotients = tl.div_rn(numbers, tl.where(usable, scale, 1.0)[:, None])
    # A scale so small that it is rounded itself can give more than the largest code.
    quotients = tl.where(usable[:, None], tl.minimum(tl.maximum(quotients, -448.0), 448.0), 0.0)
    tl.store(codes + row * columns + place, to_fp8(quotients, INTERPRETED), mask=inside)
    tl.store(scales + row * row_stride + group * group_stride, scale, mask=group < num_groups)


def quantise_rows_to_fp8(x: torch.Tensor, group: int | None, *, has_groups_together: bool = False) -> QuantisedRows:
    """See the public function; scales contiguous, or laid out as `int_linear.triton_kernel.by_groups` does."""
    num_rows, columns = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    length = triton.next_power_of_2(columns) if group is None else group
    num_groups = triton.cdiv(columns, length)
    codes = torch.empty((num_rows, columns), dtype=torch.float8_e4m3fn, device=x.device)
    scales = (empty_by_groups if has_groups_together else torch.empty)((num_rows, num_groups), dtype=torch.float32, device=x.device)
    if num_rows:
        blocks = triton.next_power_of_2(num_groups)
        quantise_rows_to_fp8_kernel[(num_rows,)](
            x, codes, scales, columns, x.stride(0), num_groups, *scales.stride(),
            GROUPS=blocks, GROUP=length, INTERPRETED=INTERPRETED, num_warps=min(max(blocks * length // 1024, 1), 8),
        )  # fmt: skip
    return QuantisedRows(codes, scales)


def fp8_linear(x: torch.Tensor, weight: Fp8Weight, activation: Activation, add: torch.Tensor | None) -> torch.Tensor:
    """See the public function."""
    rows = quantise_rows_to_fp8(x, weight.row_group, has_groups_together=True)
    if takes_row(x) and rows.scales.shape[1] == weight.scales.shape[1] == 1:
        return row_code_linear(rows, weight.data, weight.scales, weight.bias, activation=activation, add=add, dtype=x.dtype)
    if scaled_mm.takes_rows(x, weight):
        return scaled_mm.multiply(rows, weight, activation, add)
    return multiply(rows, _codes(weight), activation, add, x.dtype)


def fp8_gated_linear(x: torch.Tensor, gate: Fp8Weight, up: Fp8Weight, activation: Activation) -> torch.Tensor:
    """See the public function."""
    rows = quantise_rows_to_fp8(x, gate.row_group, has_groups_together=True)
    if scaled_mm.takes_rows(x, gate, up):
        return gated(scaled_mm.multiply(rows, gate), scaled_mm.multiply(rows, up), activation)
    activated = multiply(rows, _codes(gate), activation, None, torch.float32)
    return multiply(rows, _codes(up), "none", activated, x.dtype, combine="mul")


def lay_out(codes: torch.Tensor, group: int, scales: torch.Tensor, bias: torch.Tensor | None) -> Fp8Weight:
    """A weight as the kernel wants it: scales [N, G] float32."""
    return Fp8Weight(group, codes.contiguous(), by_groups(scales), bias, new_counters(codes.device))


def _codes(weight: Fp8Weight) -> Codes:
    return Codes(weight.data, weight.group, weight.scales, None, weight.bias, weight.counters)
