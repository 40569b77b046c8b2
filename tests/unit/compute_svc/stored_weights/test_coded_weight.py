"""Weights of codes: their numbers are what the definition says, whatever is cut, moved and joined before they are asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.stored_weights.coded_weight import CodedWeight, SparsePart
from compute_svc.stored_weights.codes import BITS, NF4, Code, pack_codes, unpack_codes
from compute_svc.stored_weights.dense_weight import DenseWeight
from compute_svc.stored_weights.stored_weight import StoredWeight, join

RANGES: dict[Code, tuple[int, int]] = {
    "int8": (-128, 128),
    "uint8": (0, 256),
    "int4": (-8, 8),
    "uint4": (0, 16),
    "int2": (-2, 2),
    "uint2": (0, 4),
}


@st.composite
def weights(draw: st.DrawFn, /, *, outputs: int | None = None, **fixed: Any) -> CodedWeight:
    """A weight of any kind; `fixed` says what it must have."""
    code: Code = fixed.get("code") or draw(st.sampled_from(sorted(BITS)))
    outputs = outputs or draw(st.integers(1, 6))
    columns = fixed.get("columns") or draw(st.integers(1, 12))
    group = fixed.get("group") or draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    sizes = (outputs, -(-columns // group))
    options = fixed.get("options")
    options = draw(st.sets(st.sampled_from(["zeros", "offsets", "table", "inputs", "sparse"]))) if options is None else options

    def scales() -> torch.Tensor:
        return torch.randn(sizes, generator=generator)

    if code == "fp8":
        data = torch.randn((outputs, columns), generator=generator).to(torch.float8_e4m3fn)
    else:
        data = pack_codes(torch.randint(*RANGES[code], (outputs, columns), generator=generator), BITS[code])
    table = None
    if "table" in options and BITS[code] <= 4 and code.startswith("u"):
        table = torch.randn((outputs, 1 << BITS[code]), generator=generator)
    sparse = None
    if "sparse" in options:
        counts = torch.randint(0, 3, (outputs,), generator=generator)
        total = int(counts.sum())
        at = torch.randint(0, columns, (total,), generator=generator)
        sparse = SparsePart(torch.cat((counts.new_zeros(1), counts.cumsum(0))), at, torch.randn(total, generator=generator))
    return CodedWeight(
        code=code,
        data=data,
        num_columns=columns,
        group=group,
        scales=scales().to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))),
        zeros=torch.randint(0, 16, sizes, generator=generator) if "zeros" in options else None,
        offsets=scales() if "offsets" in options else None,
        table=table,
        inputs=torch.randperm(columns, generator=generator) if "inputs" in options else None,
        sparse=sparse,
    )


def defined(weight: CodedWeight) -> torch.Tensor:
    """[N, K], number by number."""
    codes = weight.codes()
    numbers = torch.zeros((weight.out_features, weight.in_features))
    for n in range(weight.out_features):
        for k in range(weight.num_columns):
            group = k // weight.group
            value = codes[n, k].float() if weight.table is None else weight.table[n, int(codes[n, k])]
            if weight.zeros is not None:
                value = value - weight.zeros[n, group].float()
            value = value * weight.scales[n, group].float()
            if weight.offsets is not None:
                value = value + weight.offsets[n, group]
            numbers[n, k if weight.inputs is None else int(weight.inputs[k])] = value
        if weight.sparse is not None:
            for index in range(int(weight.sparse.starts[n]), int(weight.sparse.starts[n + 1])):
                numbers[n, int(weight.sparse.inputs[index])] += weight.sparse.values[index]
    return numbers


def numbers_of(weight: StoredWeight) -> torch.Tensor:
    return weight.dense(torch.float32)


@given(st.data(), st.sampled_from(sorted(RANGES)), st.integers(1, 5), st.integers(1, 9))
def test_codes_come_out_of_their_bytes_as_they_went_in(data: st.DataObject, code: Code, outputs: int, columns: int) -> None:
    low, high = RANGES[code]
    values = torch.tensor(data.draw(st.lists(st.integers(low, high - 1), min_size=outputs * columns, max_size=outputs * columns)))
    packed = pack_codes(values.view(outputs, columns), BITS[code])
    assert packed.shape == (outputs, -(-columns * BITS[code] // 8))
    assert torch.equal(unpack_codes(packed, BITS[code], columns, signed=low < 0).long(), values.view(outputs, columns))


@given(weights())
def test_numbers_are_what_the_definition_says(weight: CodedWeight) -> None:
    assert torch.equal(numbers_of(weight), defined(weight))
    assert torch.equal(weight.dense(torch.bfloat16), defined(weight).bfloat16())


@given(st.data(), weights())
def test_outputs_and_inputs_move_as_those_of_dense_numbers_do(data: st.DataObject, weight: CodedWeight) -> None:
    rows = torch.tensor(data.draw(st.lists(st.integers(-1, weight.out_features - 1), min_size=1, max_size=9)))
    inputs = data.draw(st.permutations([*range(weight.in_features), *[-1] * data.draw(st.integers(0, 3))]))
    dense = DenseWeight(numbers_of(weight))

    moved = weight.columns(torch.tensor(inputs)).rows(rows)

    assert torch.equal(numbers_of(moved), dense.columns(torch.tensor(inputs)).rows(rows).data)
    again = moved.columns(torch.arange(moved.in_features).flip(0))
    assert torch.equal(numbers_of(again), numbers_of(moved).flip(1))


@given(st.data(), st.sampled_from(sorted(BITS)), st.sets(st.sampled_from(["zeros", "offsets", "table"])))
def test_weights_of_one_format_keep_it_when_they_are_joined(data: st.DataObject, code: Code, options: set[str]) -> None:
    parts = data.draw(st.lists(weights(code=code, columns=8, group=3, options=options), min_size=2, max_size=3))
    together = join(parts)
    assert torch.equal(numbers_of(together), torch.cat([numbers_of(part) for part in parts]))
    assert isinstance(together, CodedWeight) or len({part.scales.dtype for part in parts}) > 1


@given(st.lists(weights(columns=6), min_size=1, max_size=3))
def test_weights_of_any_formats_can_be_joined(parts: list[CodedWeight]) -> None:
    assert torch.equal(numbers_of(join(parts)), torch.cat([numbers_of(part) for part in parts]))


@given(st.data(), st.sampled_from(sorted(BITS)), st.sets(st.sampled_from(["zeros", "offsets", "table", "sparse"])), st.integers(1, 6))
def test_inputs_are_cut_between_groups_and_nowhere_else(data: st.DataObject, code: Code, options: set[str], group: int) -> None:
    weight = data.draw(weights(code=code, group=group, options=options))
    columns = weight.num_columns
    start = data.draw(st.integers(0, columns - 1))
    stop = data.draw(st.integers(start + 1, columns))
    if group < columns and (start % group or (stop % group and stop != columns)):
        with pytest.raises(ValueError, match=f"in groups of {group}, which {start} and {stop} do not lie between"):
            weight.some_inputs(start, stop)
        return
    part = weight.some_inputs(start, stop)
    assert part.in_features == stop - start
    assert torch.equal(numbers_of(part), numbers_of(weight)[:, start:stop])
    assert torch.equal(numbers_of(DenseWeight(numbers_of(weight)).some_inputs(start, stop)), numbers_of(part))


@given(weights(columns=4, options={"inputs"}))
def test_inputs_in_an_order_of_their_own_are_not_cut(weight: CodedWeight) -> None:
    with pytest.raises(ValueError, match="its inputs are not in order"):
        weight.some_inputs(0, 2)


def test_a_table_may_be_of_all_outputs() -> None:
    codes = torch.arange(16).view(1, 16)
    weight = CodedWeight(
        code="uint4", data=pack_codes(codes, 4), num_columns=16, group=16, scales=torch.full((1, 1), 2.0), table=torch.tensor(NF4)
    )
    assert torch.equal(numbers_of(weight.rows(torch.tensor([0, 0]))), 2 * torch.tensor([NF4, NF4]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": torch.ones((2, 3))}, r"scales has the shape \[2, 3\], it must be \[2, 2\]"),
        ({"offsets": torch.ones((2, 1))}, r"offsets has the shape \[2, 1\], it must be \[2, 2\]"),
        ({"data": torch.zeros((2, 3), dtype=torch.uint8)}, r"data has the shape \[2, 3\], it must be \[2, 4\]"),
        ({"inputs": torch.arange(4)}, r"inputs has the shape \[4\], it must be \[8\]"),
        ({"table": torch.zeros(8)}, "codes of 4 bits have 16 values"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(changes: dict[str, Any], words: str) -> None:
    parts: dict[str, Any] = {"data": torch.zeros((2, 4), dtype=torch.uint8), "scales": torch.ones((2, 2))}
    with pytest.raises(ValueError, match=words):
        CodedWeight(code="uint4", num_columns=8, group=4, **(parts | changes))


def test_codes_and_scales_that_stand_for_no_number_are_seen() -> None:
    data = torch.ones((1, 2)).to(torch.float8_e4m3fn)
    good = CodedWeight(code="fp8", data=data, num_columns=2, group=2, scales=torch.ones((1, 1)))
    assert good.is_finite()
    assert not CodedWeight(code="fp8", data=data, num_columns=2, group=2, scales=torch.full((1, 1), torch.nan)).is_finite()
    data.view(torch.uint8)[0, 1] = 0xFF
    assert not good.is_finite()
