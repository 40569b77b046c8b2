"""Rows to int8: torch's own operations against the definition, the native kernels against them, bit for bit."""

from __future__ import annotations

import pytest
import torch

from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.quantise_rows import Norm, aten, native, quantise_rows, rms_norm_quantise
from compute_svc.kernels.rms_norm import rms_norm
from tests.fakes.native_libraries import INSTRUCTION_SETS, native_library_for

DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
COLUMNS = [1, 15, 16, 17, 63, 576, 1000]
ROWS = [1, 2, 17, 63]
GROUPS = [None, 16, 32, 128]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def odd_rows(columns: int) -> torch.Tensor:
    """Zeros; what is not finite; numbers so small that their scale is rounded, or is zero; halves between two codes."""
    rows = random(9, columns)
    rows[0] = 0.0
    rows[1, columns // 2] = torch.nan
    rows[2, columns - 1] = -torch.inf
    rows[3] *= 1e-43
    rows[4] = 1e-45
    rows[5] = (torch.arange(columns) % 254 - 127).float() + 0.5
    rows[5, 0] = 127.0
    rows[6] *= 1e38
    rows[7] = -0.0
    return rows


def test_codes_are_the_numbers_over_the_scale_to_the_nearest_even() -> None:
    x = torch.tensor([[127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5], [0.0] * 7, [-63.5, 0.25, 0.75, 0.0, 0.0, 0.0, 0.0]])
    codes, scales = quantise_rows(x)

    assert codes.tolist() == [[127, -127, 0, 2, 2, 0, -2], [0] * 7, [-127, 0, 2, 0, 0, 0, 0]]
    assert scales.tolist() == [[1.0], [0.0], [0.5]]


def test_each_group_has_a_scale_of_its_own_and_the_last_may_be_short() -> None:
    x = torch.tensor([[127.0, 1.0, 254.0, 1.0, 63.5], [0.0, 0.0, 0.0, 1.0, 0.0]])
    codes, scales = quantise_rows(x, 2)

    assert codes.tolist() == [[127, 1, 127, 0, 127], [0, 0, 0, 127, 0]]
    torch.testing.assert_close(scales, torch.tensor([[1.0, 2.0, 0.5], [0.0, 1 / 127, 0.0]]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_has_a_scale_that_is_not(value: float) -> None:
    codes, scales = quantise_rows(torch.tensor([[1.0, value, 2.0], [1.0, 2.0, 4.0]]))
    assert not codes[0].any()
    assert torch.isfinite(scales).tolist() == [[False], [True]]


def test_a_row_comes_back_within_half_a_step() -> None:
    x = random(20, 333)
    codes, scales = quantise_rows(x)
    assert ((codes * scales - x).abs() <= scales * 0.5001).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_native_codes_and_scales_are_those_of_torchs_operations(instruction_set: InstructionSet, dtype: torch.dtype) -> None:
    library = native_library_for(instruction_set)
    for columns in COLUMNS:
        for x in (*(random(rows, columns) for rows in ROWS), odd_rows(columns), torch.empty(0, columns)):
            given = x.to(dtype)
            for group in GROUPS:
                got, expected = native.quantise_rows(given, group, None, library), aten.quantise_rows(given, group)
                assert torch.equal(got.codes, expected.codes)
                torch.testing.assert_close(got.scales, expected.scales, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_normalised_rows_are_those_of_torchs_operations(instruction_set: InstructionSet, dtype: torch.dtype) -> None:
    library = native_library_for(instruction_set)
    for columns in COLUMNS:
        norm = Norm(random(columns, seed=1), 1e-5)
        for rows in ROWS:
            x = (random(rows, columns) * 3.0).to(dtype)
            got, expected = native.quantise_rows(x, 32, norm, library), aten.quantise_rows(aten.normalise(x, norm), 32)
            assert torch.equal(got.codes, expected.codes)
            assert torch.equal(got.scales, expected.scales)


def test_a_normalised_row_is_that_of_rms_norm_within_a_step() -> None:
    x, norm = random(20, 577) * 5.0, Norm(random(577, seed=1), 1e-5)
    codes, scales = rms_norm_quantise(x, norm)
    assert ((codes * scales - rms_norm(x, norm.weight, norm.eps)).abs() <= scales * 0.501).all()


def test_a_row_does_not_depend_on_the_others() -> None:
    x, norm = random(300, 333), Norm(random(333, seed=1), 1e-5)
    whole = rms_norm_quantise(x, norm)
    for begin, end in ((0, 1), (7, 9), (100, 300)):
        part = rms_norm_quantise(x[begin:end], norm)
        assert torch.equal(part.codes, whole.codes[begin:end])
        assert torch.equal(part.scales, whole.scales[begin:end])
