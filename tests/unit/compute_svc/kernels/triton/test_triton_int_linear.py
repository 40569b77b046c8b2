"""Triton's products of int8 rows and integer weights are the definition's; in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels.activation import Activation  # isort: skip
from compute_svc.kernels.int_linear import PackedInts, int_gated_linear, int_linear, int_mlp, join_ints, plain_ints, reference  # isort: skip
from compute_svc.kernels.int_linear.triton_kernel import by_groups, lay_out, splits_for, tiles_for  # isort: skip
from compute_svc.kernels.quantise_rows import Norm, QuantisedRows  # isort: skip

# Largest error, relative to the reference's largest number.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(outputs: int, inputs: int, *, group: int = 1 << 20, offsets: bool = False, bias: bool = False, seed: int = 0) -> PackedInts:
    codes = torch.randint(-128, 128, (outputs, inputs), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    scales = random(outputs, -(-inputs // group), seed=seed + 1).abs() * 0.02
    added = random(*scales.shape, seed=seed + 2) * 0.02 if offsets else None
    return plain_ints(codes, 8, group, scales, added, random(outputs, seed=seed + 3) if bias else None)


def int8_rows(rows: int, inputs: int, *, scales: int = 1, seed: int = 5) -> QuantisedRows:
    codes = torch.randint(-127, 128, (rows, inputs), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    return QuantisedRows(codes, random(rows, scales, seed=seed + 1).abs() * 0.1)


def on_device(plain: PackedInts) -> PackedInts:
    tensors = [None if one is None else one.to(DEVICE) for one in (plain.offsets, plain.bias)]
    return lay_out(plain_ints(plain.data.to(DEVICE), plain.bits, plain.group, plain.scales.to(DEVICE), *tensors))


def multiply(
    rows: QuantisedRows,
    plain: PackedInts,
    dtype: torch.dtype = torch.float32,
    activation: Activation = "none",
    add: torch.Tensor | None = None,
) -> torch.Tensor:
    moved = QuantisedRows(rows.codes.to(DEVICE), rows.scales.to(DEVICE))
    packed = on_device(plain)
    result = int_linear(moved, packed, activation=activation, add=None if add is None else add.to(DEVICE), dtype=dtype)
    assert packed.counters is not None and not bool(packed.counters.any()), "counters are zeros for the next product"
    return result.cpu()


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    error = (got.double() - wanted.double()).abs() / wanted.double().abs().max()
    assert bool((error <= TOLERANCES[got.dtype]).all()), f"{got.dtype}: off by {error.max():.1e} at {int(error.argmax())}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [(1, 17, 48), (2, 80, 1040), (17, 64, 2048), (33, 63, 129), (65, 70, 96), (130, 150, 144)],
)
def test_products_of_all_shapes(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    plain, x, add = weight(outputs, inputs, bias=True), int8_rows(rows, inputs), random(rows, outputs, seed=9).to(dtype)
    wanted = reference.int_linear(x, plain.data, plain.group, plain.scales, None)
    assert plain.bias is not None
    assert_close(multiply(x, plain, dtype, add=add), wanted + plain.bias.double() + add.double())


def test_programs_that_share_a_tile_and_one_alone_give_the_same_bits() -> None:
    plain, x = weight(70, 2100), int8_rows(66, 2100)
    assert splits_for(tiles_for(1), 2, 2100) > 1, "the shape is one that is shared"
    together = multiply(x, plain)
    for rows in (1, 16, 17, 40):
        part = QuantisedRows(x.codes[:rows], x.scales[:rows])
        assert torch.equal(multiply(part, plain), together[:rows])


@pytest.mark.parametrize(("rows", "scales"), [(5, 1), (5, 3), (130, 1), (130, 3)])
def test_groups_of_inputs_have_their_own_scales(rows: int, scales: int) -> None:
    plain, x = weight(33, 160, group=64), int8_rows(rows, 160, scales=scales)
    assert_close(multiply(x, plain), reference.int_linear(x, plain.data, plain.group, plain.scales, None))


def test_scales_that_lie_by_groups_are_as_long_as_tiles() -> None:
    scales = random(130, 3, seed=1)
    laid = by_groups(scales.to(DEVICE))
    assert torch.equal(laid.cpu(), scales) and laid.stride() == (1, 256)
    assert by_groups(one := random(130, 1, seed=1)) is one, "one scale for each stays where it is"
    # Those of whole tiles of rows go on as far as these.
    plain, x = weight(33, 160, group=64), int8_rows(130, 160, scales=3)
    packed = on_device(plain)
    rows = QuantisedRows(x.codes.to(DEVICE), by_groups(x.scales.to(DEVICE)))
    part = QuantisedRows(rows.codes[64:97], rows.scales[64:97])
    assert torch.equal(int_linear(part, packed), int_linear(QuantisedRows(part.codes, part.scales.contiguous()), packed))


def test_offsets_count_as_often_as_there_are_inputs() -> None:
    plain, x = weight(33, 160, offsets=True), int8_rows(5, 160)
    assert_close(multiply(x, plain), reference.int_linear(x, plain.data, plain.group, plain.scales, plain.offsets))


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "sigmoid"])
def test_activated_and_gated_products(activation: Activation) -> None:
    gate, up, x = weight(40, 64, bias=True, seed=1), weight(40, 64, seed=11), int8_rows(3, 64)
    wanted = int_gated_linear(x, gate, up, activation)
    moved = QuantisedRows(x.codes.to(DEVICE), x.scales.to(DEVICE))
    assert_close(int_gated_linear(moved, on_device(gate), on_device(up), activation).cpu(), wanted)
    assert_close(multiply(x, gate, torch.bfloat16, activation), int_linear(x, gate, activation=activation))


@pytest.mark.parametrize("bias", [False, True])
def test_gate_and_up_that_lie_together_are_one_product(bias: bool) -> None:
    gate, up, down = weight(40, 64, bias=bias, seed=1), weight(40, 64, bias=bias, seed=11), weight(64, 40, seed=21)
    x, norm = random(3, 64, seed=5), Norm(random(64, seed=6), 1e-5)
    wanted = int_mlp(x, gate, up, down, "silu", norm=norm, add=x)
    first, second = join_ints(on_device(gate), on_device(up))
    assert second.data.data_ptr() == first.data.data_ptr() + first.data.nbytes
    moved = Norm(norm.weight.to(DEVICE), norm.eps)
    assert_close(int_mlp(x.to(DEVICE), first, second, on_device(down), "silu", norm=moved, add=x.to(DEVICE)).cpu(), wanted)
    rows = QuantisedRows(torch.ones(2, 64, dtype=torch.int8, device=DEVICE), torch.ones(2, 1, device=DEVICE))
    assert_close(int_gated_linear(rows, first, second, "relu").cpu(), int_gated_linear(rows, on_device(gate), on_device(up), "relu").cpu())
