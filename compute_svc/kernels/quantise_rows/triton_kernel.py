"""One program quantises one row, normalised or gated before, in the order of operations of aten.py: the same bits.

The kernel divides where torch on a device multiplies by a reciprocal: its bits are those of a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.quantise_rows.rows import Norm, QuantisedRows
from compute_svc.kernels.triton_parts import activated, magnitude_bits, round_half_even

# What a row waits for is its own division and exponential, one after the other; where multiprocessors have several rows, they wait for memory.
_FEW_ROWS, _NUMBERS_PER_THREAD_OF_FEW, _NUMBERS_PER_THREAD = 264, 8, 16


@triton.jit
def quantise_rows_kernel(
    x,
    up,
    weight,
    codes,
    scales,
    columns,
    x_stride,
    ACTIVATION: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x [rows, columns] with rows x_stride apart, codes contiguous; a grid of rows. With up, laid out as x, activation(x) * up is quantised; with
    a weight, what is normalised. EPS is a constexpr since an argument would be rounded to float32."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < columns
    numbers = tl.load(x + row * x_stride + place, mask=inside, other=0.0).to(tl.float32)
    if up is not None:
        numbers = activated(numbers, ACTIVATION) * tl.load(up + row * x_stride + place, mask=inside, other=0.0).to(tl.float32)
    if weight is not None:
        wide = numbers.to(tl.float64)
        mean_square = tl.sum(wide * wide) / columns
        root = tl.sqrt(mean_square + tl.full((), EPS, tl.float64))
        numbers = numbers * (1.0 / root).to(tl.float32) * tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(magnitude_bits(numbers))
    scale = tl.div_rn(largest.to(tl.float32, bitcast=True), 127.0)
    usable = (scale > 0.0) & (largest < 0x7F800000)
    quotients = round_half_even(tl.div_rn(numbers, tl.where(usable, scale, 1.0)))
    # A scale so small that it is rounded itself can give more than the largest code.
    quotients = tl.where(usable, tl.minimum(tl.maximum(quotients, -127.0), 127.0), 0.0)
    tl.store(codes + row * columns + place, quotients.to(tl.int8), mask=inside)
    tl.store(scales + row, scale)


def quantise_rows(x: torch.Tensor, norm: Norm | None) -> QuantisedRows:
    """See the public functions; of rows with one scale each."""
    return _quantise(x, None, "none", norm, x.shape[1])


def quantise_gated(joined: torch.Tensor, activation: Activation) -> QuantisedRows:
    """See the public function; of halves of rows with one scale each."""
    columns = joined.shape[1] // 2
    return _quantise(joined, joined[:, columns:], activation, None, columns)


def _quantise(x: torch.Tensor, up: torch.Tensor | None, activation: Activation, norm: Norm | None, columns: int) -> QuantisedRows:
    rows = x.shape[0]
    codes = torch.empty((rows, columns), dtype=torch.int8, device=x.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    if rows == 0:
        return QuantisedRows(codes, scales)
    weight, eps = norm if norm is not None else (None, 0.0)
    block = triton.next_power_of_2(columns)
    quantise_rows_kernel[(rows,)](
        x,
        up,
        weight,
        codes,
        scales,
        columns,
        x.stride(0),
        ACTIVATION=activation,
        EPS=eps,
        BLOCK=block,
        num_warps=min(max(block // (_NUMBERS_PER_THREAD_OF_FEW if rows < _FEW_ROWS else _NUMBERS_PER_THREAD) // 32, 1), 32),
    )
    return QuantisedRows(codes, scales)
