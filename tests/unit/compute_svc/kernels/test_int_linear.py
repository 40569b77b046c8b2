"""Products of int8 rows and integer weights: torch's operations against the definition, every native kernel against them, bit for bit."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.int_linear import (
    PackedInts,
    int_gated_linear,
    int_linear,
    int_linear_of,
    int_mlp,
    pack_ints,
    plain_ints,
    reference,
)
from compute_svc.kernels.linear import Activation
from compute_svc.kernels.native import NativeLibrary
from compute_svc.kernels.quantise_rows import Norm, QuantisedRows, quantise_rows
from tests.fakes.kernel_closeness import assert_kernel_close
from tests.fakes.native_libraries import INSTRUCTION_SETS, native_libraries, native_library_for

ACTIVATIONS: list[Activation] = ["silu", "gelu", "gelu_tanh", "relu", "sigmoid"]
EXTREMES = ["any", "largest", "smallest"]


class Ints(NamedTuple):
    """A weight as a checkpoint has it."""

    codes: torch.Tensor
    bits: int
    group: int
    scales: torch.Tensor
    offsets: torch.Tensor | None
    bias: torch.Tensor | None

    def plain(self, *, rows_in_groups: bool = False) -> PackedInts:
        return plain_ints(*self, rows_in_groups=rows_in_groups)

    def packed(self, library: NativeLibrary, *, rows_in_groups: bool = False) -> PackedInts:
        return pack_ints(*self, rows_in_groups=rows_in_groups, library=library)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ints(
    outputs: int,
    inputs: int,
    *,
    bits: int = 8,
    group: int = 32,
    offsets: bool = False,
    bias: bool = True,
    halves: bool = False,
    kind: str = "any",
    seed: int = 0,
) -> Ints:
    low, high = (-128, 127) if bits == 8 else (0, 15) if offsets else (-8, 7)
    codes = torch.randint(low, high + 1, (outputs, inputs), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    if kind != "any":
        codes.fill_(high if kind == "largest" else low)
    scales = random(outputs, -(-inputs // group), seed=seed + 1).abs_() * 0.02
    zeros = random(*scales.shape, seed=seed + 2) * 0.02 if offsets else None
    if halves:
        # Some so small that float16 has fewer digits of them.
        scales = (scales * torch.logspace(0, -5, scales.numel()).view_as(scales)).half().float()
        zeros = None if zeros is None else zeros.half().float()
    return Ints(codes, bits, group, scales, zeros, random(outputs, seed=seed + 3) if bias else None)


def int8_rows(rows: int, inputs: int, *, scales: int = 1, kind: str = "any", seed: int = 5) -> QuantisedRows:
    codes = torch.randint(-127, 128, (rows, inputs), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    if kind != "any":
        codes.fill_(127 if kind == "largest" else -127)
    return QuantisedRows(codes, random(rows, scales, seed=seed + 1).abs_() * 0.1)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 40),
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 200),
    group=st.sampled_from([8, 16, 32, 64, 128, 4096]),
    bits=st.sampled_from([4, 8]),
    offsets=st.booleans(),
    halves=st.booleans(),
    rows_in_groups=st.booleans(),
    bias=st.booleans(),
    kinds=st.tuples(st.sampled_from(EXTREMES), st.sampled_from(EXTREMES)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    add=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_path_has_the_same_bits_and_they_are_the_definitions_value(
    rows: int,
    outputs: int,
    inputs: int,
    group: int,
    bits: int,
    offsets: bool,
    halves: bool,
    rows_in_groups: bool,
    bias: bool,
    kinds: tuple[str, str],
    dtype: torch.dtype,
    add: bool,
    seed: int,
) -> None:
    weight = ints(outputs, inputs, bits=bits, group=group, offsets=offsets, bias=bias, halves=halves, kind=kinds[0], seed=seed)
    x = int8_rows(rows, inputs, scales=weight.scales.shape[1] if rows_in_groups else 1, kind=kinds[1], seed=seed + 7)
    other = random(rows, outputs, seed=seed + 9).to(dtype) if add else None

    plain = int_linear(x, weight.plain(), add=other, dtype=dtype)

    for library in native_libraries():
        assert torch.equal(int_linear(x, weight.packed(library), add=other, dtype=dtype), plain), library.instruction_set
    exact = reference.int_linear(x, weight.codes, group, weight.scales, weight.offsets)
    exact += 0.0 if weight.bias is None else weight.bias.double()
    exact += 0.0 if other is None else other.double()
    # Sums of groups may cancel: what is lost is small beside the largest, not beside each.
    torch.testing.assert_close(plain.double(), exact, rtol=0.0, atol=float(exact.abs().max()) * (1e-5 if dtype == torch.float32 else 5e-3))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize(("bits", "group"), [(8, 4096), (8, 64), (4, 4096), (4, 32)])
def test_sums_of_many_of_the_largest_products_are_exact(instruction_set: InstructionSet, bits: int, group: int) -> None:
    # 127 * 128 * 3100 has no float32: sums must be integers until their end.
    library = native_library_for(instruction_set)
    for kinds in (("smallest", "smallest"), ("smallest", "largest"), ("largest", "any")):
        weight = ints(33, 3101, bits=bits, group=group, bias=False, kind=kinds[0])
        for rows in (1, 13):
            x = int8_rows(rows, 3101, kind=kinds[1])
            assert torch.equal(int_linear(x, weight.packed(library)), int_linear(x, weight.plain()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_activated_and_gated_products_are_close(instruction_set: InstructionSet, activation: Activation) -> None:
    library = native_library_for(instruction_set)
    gate, up = ints(45, 100, seed=0), ints(45, 100, seed=20)
    for rows in (1, 2, 15, 17):
        # Not far from zero: in gelu's tail torch's operations lose digits.
        x = QuantisedRows(int8_rows(rows, 100).codes, torch.full((rows, 1), 1e-3))
        for dtype in (torch.float32, torch.bfloat16):
            expected = int_linear(x, gate.plain(), activation=activation, dtype=dtype)
            assert_kernel_close(activation, int_linear(x, gate.packed(library), activation=activation, dtype=dtype), expected)
            expected = int_gated_linear(x, gate.plain(), up.plain(), activation, dtype=dtype)
            assert_kernel_close(
                f"gated {activation}", int_gated_linear(x, gate.packed(library), up.packed(library), activation, dtype=dtype), expected
            )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_torchs_over_all_their_range(activation: Activation) -> None:
    # A weight of one and rows of scales: the activation of any number there is.
    one = Ints(torch.ones(1, 1, dtype=torch.int8), 8, 8, torch.ones(1, 1), None, None)
    values = torch.cat((torch.linspace(-110.0, 110.0, 4001), torch.tensor([0.0, 1e-30, 1e30, torch.nan])))
    x = QuantisedRows(torch.where(values < 0, -1, 1).to(torch.int8)[:, None], values.abs()[:, None])
    for library in native_libraries():
        got, expected = int_linear(x, one.packed(library), activation=activation), int_linear(x, one.plain(), activation=activation)
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("rows_in_groups", [False, True], ids=["whole rows", "in groups"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_layer_part_in_one_call_has_the_bits_of_its_operations(
    instruction_set: InstructionSet, dtype: torch.dtype, rows_in_groups: bool
) -> None:
    library = native_library_for(instruction_set)
    weights = [ints(70, 50, seed=0), ints(70, 50, seed=20), ints(50, 70, bits=4, group=16, seed=40)]
    plain = [one.plain(rows_in_groups=rows_in_groups) for one in weights]
    packed = [one.packed(library, rows_in_groups=rows_in_groups) for one in weights]
    for rows in (1, 2, 13, 40):
        x, add = random(rows, 50, seed=1).to(dtype), random(rows, 50, seed=2).to(dtype)
        for norm in (None, Norm(random(50, seed=3), 1e-5)):
            assert torch.equal(int_linear_of(x, packed[0], norm=norm), int_linear_of(x, plain[0], norm=norm))
            for gates in ((plain[0], packed[0]), (None, None)):
                expected = int_mlp(x, gates[0], plain[1], plain[2], "relu", norm=norm, add=add)
                assert torch.equal(int_mlp(x, gates[1], packed[1], packed[2], "relu", norm=norm, add=add), expected)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_a_row_depends_on_itself_alone_whatever_the_threads(instruction_set: InstructionSet) -> None:
    library = native_library_for(instruction_set)
    gate, up, down = (one.packed(library) for one in (ints(333, 48, seed=0), ints(333, 48, seed=20), ints(48, 333, seed=40)))
    x, norm = random(600, 48, seed=1), Norm(random(48, seed=3), 1e-5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = int_mlp(x, gate, up, down, "silu", norm=norm, add=x)
        torch.set_num_threads(3)
        assert torch.equal(int_mlp(x, gate, up, down, "silu", norm=norm, add=x), whole)
        for num_rows in [*range(1, 20), 63, 64, 65, 127, 513]:
            part = x[7 : 7 + num_rows]
            assert torch.equal(int_mlp(part, gate, up, down, "silu", norm=norm, add=part), whole[7 : 7 + num_rows])
    finally:
        torch.set_num_threads(threads)


def test_rows_that_are_not_finite_show() -> None:
    weight = ints(33, 64, bias=False)
    x = random(3, 64, seed=0)
    x[1, 5] = torch.inf
    for packed in (weight.plain(), *(weight.packed(library) for library in native_libraries())):
        assert int_linear(quantise_rows(x), packed).isfinite().all(dim=1).tolist() == [True, False, True]


def test_scales_are_halves_where_that_changes_none() -> None:
    scales = torch.tensor([[0.5, 2.0**-20], [3.0, 0.0]])
    for library in native_libraries():
        packed = [
            pack_ints(torch.zeros(2, 64, dtype=torch.int8), 8, 32, one, library=library) for one in (scales, scales + 1e-5, scales * 1e6)
        ]
        assert [one.scales.dtype for one in packed] == [torch.float16, torch.float32, torch.float32]


def test_no_rows_give_no_rows() -> None:
    weight = ints(33, 64)
    for packed in (weight.plain(), *(weight.packed(library) for library in native_libraries())):
        assert int_linear_of(torch.empty(0, 64), packed).shape == (0, 33)


@pytest.mark.parametrize(
    ("codes", "bits", "group", "scales", "says"),
    [
        (torch.zeros(4, 64, dtype=torch.int8), 5, 32, torch.ones(4, 2), "5 bits"),
        (torch.zeros(4, 64, dtype=torch.int8), 8, 12, torch.ones(4, 6), "12 inputs"),
        (torch.zeros(4, 64, dtype=torch.int8), 8, 32, torch.ones(4, 3), r"\(4, 3\)"),
        (torch.tensor([[-1] * 32 + [15] * 32], dtype=torch.int8), 4, 32, torch.ones(1, 2), "from -1 to 15"),
    ],
)
def test_weights_that_are_none_are_refused(codes: torch.Tensor, bits: int, group: int, scales: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pack_ints(codes, bits, group, scales)


def test_sizes_that_do_not_fit_are_refused() -> None:
    weight, other = ints(33, 64).plain(), ints(34, 64).plain()
    with pytest.raises(ValueError, match="63 inputs"):
        int_linear(int8_rows(2, 63), weight)
    with pytest.raises(ValueError, match="rows have 3 scales"):
        int_linear(int8_rows(2, 64, scales=3), weight)
    with pytest.raises(ValueError, match="63 columns"):
        int_linear_of(torch.zeros(2, 63), weight)
    with pytest.raises(ValueError, match="must be alike"):
        int_gated_linear(int8_rows(2, 64), weight, other, "silu")
    with pytest.raises(ValueError, match="down takes 64 inputs"):
        int_mlp(torch.zeros(2, 64), None, weight, other, "silu")
