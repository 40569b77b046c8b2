"""Products by torch's own, cuBLAS's or CUTLASS's, where these take them and are quicker than the Triton kernel: of many rows."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation, activate
from compute_svc.kernels.backend import is_batch_invariant
from compute_svc.kernels.device_features import has_float8
from compute_svc.kernels.fp8_linear.packed import Fp8Weight
from compute_svc.kernels.quantise_rows import QuantisedRows

# Of 64 rows the Triton kernel is as quick, of 256 it takes 1.5 to 1.9 times as long; more so of more (tests/bench/results/gpu_kernels.json, where
# sums stay in the unit; those of float32 are not timed yet).
_FEW_ROWS = 128
# What torch wants outputs and inputs to be multiples of.
_MULTIPLE = 16


def takes_rows(x: torch.Tensor, *weights: Fp8Weight) -> bool:
    """Whether `multiply` is what multiplies these rows: many in bfloat16, by weights with one scale for each output.

    Not where bits may not depend on the number of rows: libraries choose their cut, and their order of sums, by it.
    """
    if len(x) <= _FEW_ROWS or x.dtype != torch.bfloat16 or is_batch_invariant() or not has_float8(x.device):
        return False
    return all(one.scales.shape[1] == 1 and not (one.data.shape[0] % _MULTIPLE or one.data.shape[1] % _MULTIPLE) for one in weights)


def multiply(rows: QuantisedRows, weight: Fp8Weight, activation: Activation = "none", add: torch.Tensor | None = None) -> torch.Tensor:
    """activation(rows W^T + bias) (+ add), rounded to bfloat16 after each of these.

    Sums leave the matrix unit every 128 inputs, as our kernel's do: Hopper's have 14 bits there and are cut off. By a model of that, with
    14336 inputs, sums that stay (`use_fast_accum`) are 0.3 % of a result's size off where products have either sign, beside 3.6 % that
    rounding to float8 makes, but 9 % where all have one sign, beside 0.2 %; those that leave 0.02 % at most.

    Args:
        rows: M rows of K float8, with one scale each.
        weight: N outputs, with one scale each.
        activation: Applied to each output.
        add: [M, N] bfloat16.

    Returns:
        [M, N] bfloat16, new memory.
    """
    bias = None if weight.bias is None else weight.bias.bfloat16()
    product = torch._scaled_mm(
        rows.codes,
        weight.data.t(),
        scale_a=rows.scales,
        scale_b=weight.scales.t(),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=False,
    )
    result = activate(product, activation)
    return result if add is None else result.add_(add)
