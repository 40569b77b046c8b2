"""CUDA multiplies as exactly as the dtype says; the switches exist in every build of torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from compute_svc.kernels.exact_products import use_exact_products


@pytest.fixture
def permissive() -> Iterator[None]:
    """The process as if somebody had asked for speed; afterwards as it was."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
    matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction = "tf32", True
    yield
    matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction = before


@pytest.mark.usefixtures("permissive")
def test_neither_tf32_nor_sums_in_bfloat16_are_left() -> None:
    use_exact_products()

    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
