"""Triton kernels that work row by row give what the references give; in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels.rms_norm import reference as rms_norm_reference  # isort: skip
from compute_svc.kernels.rms_norm.triton_kernel import rms_norm  # isort: skip

# Largest error, relative to the reference's largest number.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def assert_close(operation: str, got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Tells operation, dtype, largest error and where it is."""
    assert got.dtype == wanted.dtype and got.shape == wanted.shape, (
        f"{operation}: {got.dtype} {got.shape}, not {wanted.dtype} {wanted.shape}"
    )
    error = (got.float() - wanted.float()).abs() / wanted.float().abs().max()
    worst = int(error.argmax())
    assert bool((error <= TOLERANCES[got.dtype]).all()), f"{operation} {got.dtype}: off by {error.max():.1e} at {worst}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [1, 63, 576])
def test_rms_norm_of_rows_that_lie_apart(columns: int, dtype: torch.dtype) -> None:
    wide = torch.randn(3, columns + 5, generator=torch.Generator().manual_seed(columns)).to(DEVICE, dtype)
    x, weight = wide[:, :columns], wide[0, 5:].clone()
    assert_close("rms_norm", rms_norm(x, weight, 1e-5), rms_norm_reference.rms_norm(x, weight, 1e-5))
