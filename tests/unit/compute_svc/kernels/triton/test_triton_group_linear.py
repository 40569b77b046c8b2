"""Triton's products of floating rows and integer weights are the definition's; in the interpreter where there is no GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels.activation import Activation  # isort: skip
from compute_svc.kernels.group_linear import GroupedCodes, group_gated_linear, group_linear, pack_groups, reference  # isort: skip
from compute_svc.kernels.group_linear.lookup import lookup_program  # isort: skip
from compute_svc.kernels.group_linear.triton_kernel import numbers_of, tiles_for  # isort: skip
from compute_svc.kernels.gated_linear import gated_linear  # isort: skip
from compute_svc.kernels.int_linear.triton_kernel import splits_for  # isort: skip
from compute_svc.kernels.linear import groups, linear  # isort: skip
from compute_svc.stored_weights.coded_weight import CodedWeight  # isort: skip
from compute_svc.stored_weights.codes import BITS, NF4, Code, pack_codes  # isort: skip

# Largest error, relative to the reference's largest number.
TOLERANCES = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
WHOLE = 1 << 20


class Codes(NamedTuple):
    """A weight as a checkpoint has it."""

    codes: torch.Tensor
    bits: int
    group: int
    scales: torch.Tensor
    offsets: torch.Tensor | None
    bias: torch.Tensor | None

    def packed(self) -> GroupedCodes:
        tensors = [None if one is None else one.to(DEVICE) for one in (self.offsets, self.bias)]
        return pack_groups(self.codes.to(DEVICE), self.bits, self.group, self.scales.to(DEVICE), *tensors)

    def exact(self, x: torch.Tensor, activation: Activation = "none", add: torch.Tensor | None = None) -> torch.Tensor:
        return reference.group_linear(x, self.codes, self.group, self.scales, self.offsets, self.bias, activation, add)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(
    outputs: int,
    inputs: int,
    *,
    bits: int = 4,
    group: int = 64,
    offsets: bool = False,
    bias: bool = False,
    scales: torch.dtype = torch.float16,
    seed: int = 0,
) -> Codes:
    low = -(1 << (bits - 1))
    codes = torch.randint(low, -low, (outputs, inputs), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    of_groups = (random(outputs, -(-inputs // group), seed=seed + 1).abs() * 0.02).to(scales)
    added = random(*of_groups.shape, seed=seed + 2) * 0.02 if offsets else None
    return Codes(codes, bits, group, of_groups, added, random(outputs, seed=seed + 3) if bias else None)


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    error = (got.cpu().double() - wanted).abs() / wanted.abs().max()
    assert bool((error <= TOLERANCES[got.dtype]).all()), f"{got.dtype}: off by {error.max():.1e} at {int(error.argmax())}"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "group", "dtype"),
    [
        (1, 17, 192, 64, torch.float32),
        (2, 70, 520, 128, torch.bfloat16),
        (17, 63, 96, 32, torch.bfloat16),
        (40, 64, 300, WHOLE, torch.float16),
        (65, 130, 100, 96, torch.bfloat16),
    ],
)
def test_products_of_all_shapes(rows: int, outputs: int, inputs: int, group: int, dtype: torch.dtype, bits: int) -> None:
    plain = weight(outputs, inputs, bits=bits, group=group, bias=True)
    x, add = random(rows, inputs, seed=5).to(dtype), random(rows, outputs, seed=9).to(dtype)
    got = group_linear(x.to(DEVICE), plain.packed(), add=add.to(DEVICE))
    assert_close(got, plain.exact(x, add=add))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float32], ids=str)
def test_offsets_are_added_to_each_weight(bits: int, scales: torch.dtype) -> None:
    plain, x = weight(33, 200, bits=bits, offsets=True, scales=scales), random(3, 200, seed=5).bfloat16()
    assert_close(group_linear(x.to(DEVICE), plain.packed()), plain.exact(x))


def test_sums_of_float32_rows_meet_offsets_without_matrix_units() -> None:
    plain, x = weight(33, 100, offsets=True), random(3, 100, seed=5)
    assert_close(group_linear(x.to(DEVICE), plain.packed()), plain.exact(x))


@pytest.mark.parametrize("bits", [4, 8])
def test_programs_that_share_a_tile_leave_no_trace(bits: int) -> None:
    plain, x = weight(70, 4096, bits=bits, group=128), random(3, 4096, seed=5).bfloat16()
    packed = plain.packed()
    assert splits_for(tiles_for(3, 128, x.dtype), 2, packed.data.shape[1]) > 1, "the shape is one that is shared"
    once = group_linear(x.to(DEVICE), packed)
    assert_close(once, plain.exact(x))
    assert torch.equal(group_linear(x.to(DEVICE), packed), once)
    assert not bool(packed.counters.any())


def test_rows_may_lie_apart() -> None:
    plain, wide = weight(20, 64), random(3, 80, seed=5).bfloat16()
    assert_close(group_linear(wide.to(DEVICE)[:, :64], plain.packed()), plain.exact(wide[:, :64]))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_activated_and_gated_products(activation: Activation) -> None:
    gate, up, x = weight(40, 64, bias=True, seed=1), weight(40, 64, seed=11), random(3, 64, seed=5).bfloat16()
    activated = gate.exact(x, activation)
    assert_close(group_linear(x.to(DEVICE), gate.packed(), activation=activation), activated)
    assert_close(group_gated_linear(x.to(DEVICE), gate.packed(), up.packed(), activation), activated * up.exact(x))


@pytest.mark.parametrize("bits", [4, 8])
def test_very_many_rows_are_multiplied_by_numbers_that_are_written_once(bits: int) -> None:
    gate, up = weight(33, 100, bits=bits, bias=True), weight(33, 100, bits=bits, group=32, offsets=True, seed=7)
    x = random(513, 100, seed=5).bfloat16()
    of_input = torch.arange(100) // 64
    numbers = (gate.codes.float() * gate.scales.float()[:, of_input]).bfloat16()
    assert torch.equal(numbers_of(gate.packed(), torch.bfloat16).cpu(), numbers)
    assert_close(group_linear(x.to(DEVICE), gate.packed(), add=x.to(DEVICE)[:, :33]), gate.exact(x, add=x[:, :33]))
    assert_close(group_gated_linear(x.to(DEVICE), gate.packed(), up.packed(), "silu"), gate.exact(x, "silu") * up.exact(x))


def test_codes_take_half_a_byte() -> None:
    packed = weight(64, 4096, group=128).packed()
    assert packed.data.nbytes == 64 * 4096 // 2
    assert packed.scales.dtype == torch.float16


@pytest.mark.parametrize("code", ["int4", "uint4", "int8", "uint8", "int2", "uint2"])
@pytest.mark.parametrize("is_reordered", [False, True], ids=["in order", "reordered"])
def test_stored_weights_are_multiplied_by_as_they_are(code: Code, is_reordered: bool) -> None:
    codes = torch.randint(0, 1 << BITS[code], (34, 128), generator=torch.Generator().manual_seed(3))
    zeros = torch.randint(0, 1 << BITS[code], (34, 2), generator=torch.Generator().manual_seed(4)) if code.startswith("u") else None
    scales, inputs = random(34, 2, seed=5).abs().half(), torch.randperm(128, generator=torch.Generator().manual_seed(6))
    stored = CodedWeight(
        code=code,
        data=pack_codes(codes, BITS[code]),
        num_columns=128,
        group=64,
        scales=scales,
        zeros=zeros,
        inputs=inputs if is_reordered else None,
    )
    x = random(3, 128, seed=7).bfloat16()
    packed = groups.pack(stored.to(DEVICE), None)
    assert packed.num_bytes < 34 * 128 * 2
    exact = x.double() @ stored.dense(torch.float32).double().t()
    assert_close(linear(x.to(DEVICE), packed), exact)
    gated = torch.nn.functional.silu(exact) * exact
    assert_close(gated_linear(x.to(DEVICE), packed, packed, "silu"), gated)


# FP4 of bitsandbytes: one bit of mantissa, two of exponent, and a sign.
FP4 = (
    0.0,
    0.0052083333,
    0.6666667,
    1.0,
    0.33333333,
    0.5,
    0.16666667,
    0.25,
    -0.0,
    -0.0052083333,
    -0.6666667,
    -1.0,
    -0.33333333,
    -0.5,
    -0.16666667,
    -0.25,
)


def tabled(table: tuple[float, ...], outputs: int, inputs: int, group: int = 64, seed: int = 0) -> CodedWeight:
    codes = torch.randint(0, 16, (outputs, inputs), generator=torch.Generator().manual_seed(seed))
    scales = random(outputs, -(-inputs // group), seed=seed + 1).abs() * 0.02
    return CodedWeight(code="uint4", data=pack_codes(codes, 4), num_columns=inputs, group=group, scales=scales, table=torch.tensor(table))


@pytest.mark.parametrize("table", [NF4, FP4], ids=["nf4", "fp4"])
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "dtype"),
    [(1, 17, 256, torch.bfloat16), (2, 33, 192, torch.float32), (40, 64, 320, torch.bfloat16), (17, 20, 64, torch.float16)],
)
def test_products_with_values_of_a_table(table: tuple[float, ...], rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    stored, x, bias = tabled(table, outputs, inputs), random(rows, inputs, seed=5).to(dtype), random(outputs, seed=3)
    assert groups.takes_groups(stored) == (DEVICE.type == "cuda")
    packed = groups.pack(stored.to(DEVICE), bias.to(DEVICE))
    assert packed.layout == "groups"
    assert_close(linear(x.to(DEVICE), packed), x.double() @ stored.dense(torch.float32).double().t() + bias.double())
    # As close as to numbers that are written out.
    assert_close(linear(x.to(DEVICE), packed), x.double() @ stored.dense(dtype).double().t() + bias.double())


def test_values_of_a_table_that_are_written_out_are_the_numbers_of_a_cpu() -> None:
    stored = tabled(NF4, 33, 320)
    packed = groups.pack(stored.to(DEVICE), None).groups
    assert packed is not None and packed.table is not None
    for dtype in (torch.bfloat16, torch.float32):
        assert torch.equal(numbers_of(packed, dtype).cpu(), stored.dense(dtype))
    x = random(513, 320, seed=5).bfloat16()
    assert_close(group_linear(x.to(DEVICE), packed), x.double() @ stored.dense(torch.bfloat16).double().t())


def test_gate_and_up_of_tables() -> None:
    gate, up, x = tabled(NF4, 40, 64), tabled(NF4, 40, 64, seed=9), random(3, 64, seed=5).bfloat16()
    exact = [x.double() @ stored.dense(torch.float32).double().t() for stored in (gate, up)]
    got = gated_linear(x.to(DEVICE), groups.pack(gate.to(DEVICE), None), groups.pack(up.to(DEVICE), None), "silu")
    assert_close(got, torch.nn.functional.silu(exact[0]) * exact[1])


def permuted(one: int, other: int, control: int) -> int:
    """PTX's prmt in its default mode."""
    both = (other << 32) | one
    result = 0
    for place in range(4):
        nibble = control >> 4 * place & 15
        byte = both >> 8 * (nibble & 7) & 255
        result |= (255 if byte & 128 else 0) << 8 * place if nibble & 8 else byte << 8 * place
    return result


@pytest.mark.parametrize("table", [NF4, FP4], ids=["nf4", "fp4"])
def test_the_instructions_that_look_up_a_table_find_its_values(table: tuple[float, ...]) -> None:
    lines = [
        line.strip(" ;").replace(",", "").split()
        for line in lookup_program(table).splitlines()
        if line.endswith(";") and ".reg" not in line
    ]
    values = torch.tensor(table).bfloat16().view(torch.int16).tolist()
    drawn = torch.randint(0, 1 << 32, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    for word in [*drawn, 0, 0xFFFFFFFF, 0x76543210, 0xFEDCBA98]:
        registers: dict[str, int] = {"$4": word}

        def value(name: str, registers: dict[str, int] = registers) -> int:
            return registers[name] if name in registers else int(name, 0)

        for operation, to, *arguments in lines:
            given = [value(argument) for argument in arguments]
            if operation == "mov.b32":
                registers[to] = given[0]
            elif operation == "and.b32":
                registers[to] = given[0] & given[1]
            elif operation == "shr.u32":
                registers[to] = given[0] >> given[1]
            elif operation == "lop3.b32":
                assert given[3] == 0xEA
                registers[to] = (given[0] & given[1]) | given[2]
            else:
                assert operation == "prmt.b32"
                registers[to] = permuted(*given)
        for part in range(4):
            both = [values[word >> 16 * half + 4 * part & 15] & 0xFFFF for half in (0, 1)]
            assert registers[f"${part}"] == both[0] | both[1] << 16


@pytest.mark.parametrize("change", ["one for each output", "two bits", "zeros"])
def test_other_tables_are_written_out(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "backend_for", lambda *_, **__: "triton")
    stored = tabled(NF4, 8, 64)
    assert groups.takes_groups(stored)
    changed = {
        "one for each output": lambda: replace(stored, table=torch.tensor(NF4).expand(8, 16)),
        "two bits": lambda: replace(stored, code="uint2", data=stored.data[:, :16], table=torch.tensor(NF4[:4])),
        "zeros": lambda: replace(stored, zeros=torch.ones((8, 1))),
    }[change]()
    assert not groups.takes_groups(changed)
