"""Codes in groups: how close they come, what is exact, and what becomes of numbers that no scale reaches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.kernels.paged_kv.kv_codes import CODE_DTYPES, decode, encode
from tests.examples import examples

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
NUMBERS = FINITE | st.floats(-20, 20, width=32) | st.floats(-(2.0**-20), 2.0**-20, width=32) | st.sampled_from([0.0, -0.0])
ANY = NUMBERS | st.sampled_from([math.nan, math.inf, -math.inf])
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in sorted(CODE_DTYPES, key=str)]
LARGEST = 127 * 65504.0
# A 127th of this and of less is zero in float32, and so is the scale.
VANISHING = 127 * 2.0**-150


def rows_of(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[torch.Tensor, int]]:
    """Rows of one width and a group no wider."""
    return st.integers(1, 9).flatmap(
        lambda width: st.tuples(
            st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=3).map(torch.tensor), st.integers(1, width)
        )
    )


@examples(50)
@given(rows_of(NUMBERS))
def test_a_number_is_off_by_half_a_scale_at_most_and_keeps_its_sign(case: tuple[torch.Tensor, int]) -> None:
    rows, group = case
    codes, scales = encode(rows, group, torch.int8)
    decoded = decode(codes, scales, group)
    for row, read, of_row in zip(rows.double(), decoded.double(), scales.double(), strict=True):
        for start, scale in zip(range(0, len(row), group), of_row, strict=True):
            within = row[start : start + group].clamp(-LARGEST, LARGEST)
            error = (read[start : start + group] - within).abs()
            assert bool((error <= scale * 0.5 * (1 + 1e-5) + VANISHING).all())
            assert scale <= within.abs().max() / 127 * (1 + 2**-10) + 2**-24
    assert not bool((decoded * rows.sign() < 0).any())
    assert int(codes.min()) >= -127


@pytest.mark.parametrize("dtype", DTYPES)
@examples(50)
@given(rows=rows_of(ANY))
def test_what_is_read_is_the_product_of_code_and_scale_without_an_error(dtype: torch.dtype, rows: tuple[torch.Tensor, int]) -> None:
    numbers, group = rows
    codes, scales = encode(numbers, group, dtype)
    expected = codes.double() * scales.double().repeat_interleave(group, dim=-1)[:, : numbers.shape[1]]
    assert scales.dtype == torch.float16 and codes.dtype == dtype
    assert torch.equal(decode(codes, scales, group).double().nan_to_num(-1.0), expected.nan_to_num(-1.0))


@pytest.mark.parametrize("dtype", DTYPES)
@examples(50)
@given(rows=rows_of(ANY))
def test_a_group_with_a_number_that_is_not_finite_is_read_as_none_and_no_other_is(
    dtype: torch.dtype, rows: tuple[torch.Tensor, int]
) -> None:
    numbers, group = rows
    codes, scales = encode(numbers, group, dtype)
    for index in range(scales.shape[1]):
        is_finite = numbers[:, index * group : (index + 1) * group].isfinite().all(dim=1)
        assert torch.equal(scales[:, index].isfinite(), is_finite)
        assert torch.equal(decode(codes, scales, group)[:, index * group : (index + 1) * group].isnan().all(dim=1), ~is_finite)


@examples(50)
@given(rows_of(ANY), st.data())
def test_a_row_has_the_same_bytes_alone_and_among_others(case: tuple[torch.Tensor, int], data: st.DataObject) -> None:
    rows, group = case
    row = data.draw(st.integers(0, len(rows) - 1))
    # Strided, as a part of a wider projection is.
    wide = torch.cat((rows, rows), dim=1)[:, : rows.shape[1]]
    for dtype in CODE_DTYPES:
        together, alone = encode(wide, group, dtype), encode(rows[row : row + 1], group, dtype)
        for one, other in zip(together, alone, strict=True):
            assert one[row].contiguous().view(torch.uint8).tolist() == other[0].contiguous().view(torch.uint8).tolist()


@pytest.mark.parametrize(
    ("numbers", "scale", "codes"),
    [
        ([0.0, -0.0, 0.0], 0.0, [0, 0, 0]),
        ([127.0, 2.5, -3.5], 1.0, [127, 2, -4]),
        ([1e-9, 0.0, 0.0], 2.0**-24, [0, 0, 0]),
        ([127 * 2.0**-24, 2.0**-24, -(2.0**-25)], 2.0**-24, [127, 1, 0]),
        ([1.1 * 127 * 2.0**-24, 0.0, -(2.0**-24)], 2.0**-23, [70, 0, 0]),
        ([1e-45, 0.0, 0.0], 0.0, [0, 0, 0]),
        ([LARGEST, -LARGEST, 65504.0], 65504.0, [127, -127, 1]),
        ([3e38, -9e6, 65504.0], 65504.0, [127, -127, 1]),
    ],
    ids=["zeros", "half-to-even", "underflow", "smallest", "rounded-up", "no-float32-quotient", "largest", "overflow"],
)
def test_scales_at_the_borders_of_float16(numbers: list[float], scale: float, codes: list[int]) -> None:
    found, scales = encode(torch.tensor([numbers]), 3, torch.int8)
    assert (found.tolist(), scales.tolist()) == ([codes], [[scale]])


def test_every_positive_float16_is_the_scale_of_its_127_fold() -> None:
    expected = torch.from_numpy(np.arange(1, 0x7C00, dtype=np.int16).view(np.float16).copy())
    codes, scales = encode(expected.float()[:, None] * 127, 1, torch.int8)
    assert torch.equal(scales[:, 0], expected) and bool((codes == 127).all())


def test_float8_codes_keep_what_a_larger_neighbour_takes_from_int8() -> None:
    numbers = torch.tensor([[448.0, 0.25, -0.0625, 1.0]])
    assert torch.equal(decode(*encode(numbers, 4, torch.float8_e4m3fn), 4), numbers)
    assert decode(*encode(numbers, 4, torch.int8), 4).tolist()[0][1:] != numbers.tolist()[0][1:]
