"""Which backend computes: what is required and cannot be is refused by its setting, and what is off is off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compute_svc.kernels.backend import TritonKernelsError, backend_for, use_triton_kernels, uses_triton


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    use_triton_kernels("auto", "cpu")


def test_triton_kernels_that_are_required_on_a_cpu_are_refused_by_the_setting() -> None:
    with pytest.raises(TritonKernelsError, match="COMPUTE_TRITON_KERNELS is required, but there is no Triton kernel for cpu"):
        use_triton_kernels("required", "cpu")


def test_operations_that_have_a_triton_kernel_run_on_it_on_cuda_alone() -> None:
    use_triton_kernels("required", "cuda")
    assert uses_triton("cuda") and not uses_triton("cpu")
    assert backend_for("some", "cuda", has_triton=True) == "triton"
    assert backend_for("some", "cuda") == "aten"
    assert backend_for("some", "cpu", has_triton=True) == "cpu"


def test_triton_kernels_that_are_off_compute_nowhere() -> None:
    use_triton_kernels("off", "cuda")
    assert not uses_triton("cuda")
    assert backend_for("some", "cuda", has_triton=True) == "aten"
