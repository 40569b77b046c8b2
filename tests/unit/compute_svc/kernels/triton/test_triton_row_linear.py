"""Products of one row give what the references give; in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels.activation import Activation, activate  # isort: skip
from compute_svc.kernels.device_features import has_float8  # isort: skip
from compute_svc.kernels.fp8_linear import quantise_rows_to_fp8  # isort: skip
from compute_svc.kernels.int_linear.triton_kernel import Codes, multiply as multiply_tiles, new_counters  # isort: skip
from compute_svc.kernels.quantise_rows import Norm, quantise_rows  # isort: skip
from compute_svc.kernels.rms_norm import reference as rms_norm  # isort: skip
from compute_svc.kernels.row_linear.triton_kernel import Tiles, multiply, multiply_codes, multiply_gated  # isort: skip

# Largest error, relative to the reference's largest number.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in TOLERANCES]
# Outputs and inputs: fewer than a block, whole blocks, more.
SIZES = [(1, 1), (3, 63), (5, 512), (64, 1024), (9, 1100)]


def takes_float8() -> bool:
    return DEVICE.type == "cpu" or has_float8(DEVICE)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Tells dtype, largest error and where it is."""
    assert got.shape == wanted.shape
    error = (got.float() - wanted.float()).abs() / wanted.float().abs().max().clamp(min=1e-30)
    assert bool((error <= TOLERANCES[got.dtype]).all()), f"{got.dtype}: off by {error.max():.1e} at {int(error.argmax())}"


def defined(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm | None) -> torch.Tensor:
    """norm(x) W^T + bias in float64."""
    x = x.double() if norm is None else rms_norm.rms_norm(x.double(), norm.weight.double(), norm.eps)
    products = x @ weight.double().t()
    return products if bias is None else products + bias.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_a_row_is_normalised_multiplied_activated_and_added(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    x, weight, bias = random(1, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype, seed=1), random(outputs, dtype=dtype, seed=2)
    add, norm = random(1, outputs, dtype=dtype, seed=3), Norm(random(inputs, seed=4), 1e-5)

    assert_close(multiply(x, weight, None, "none", None, None), defined(x, weight, None, None))
    assert_close(multiply(x, weight, bias, "none", add, norm), defined(x, weight, bias, norm) + add.double())
    assert_close(multiply(x, weight, bias, "gelu", None, norm), activate(defined(x, weight, bias, norm).float(), "gelu"))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu"])
@pytest.mark.parametrize(("outputs", "inputs"), SIZES[1:])
def test_a_gate_and_its_up_are_multiplied(outputs: int, inputs: int, activation: Activation, with_bias: bool) -> None:
    x, weight = random(1, inputs, dtype=torch.bfloat16), random(2 * outputs, inputs, dtype=torch.bfloat16, seed=1)
    bias = random(2 * outputs, dtype=torch.bfloat16, seed=2) if with_bias else None
    for norm in (None, Norm(random(inputs, seed=3), 1e-5)):
        gate, up = defined(x, weight, bias, norm).float().chunk(2, dim=1)
        assert_close(multiply_gated(x, weight, bias, activation, norm), activate(gate, activation) * up)


@pytest.mark.parametrize("tiles", [Tiles(1, 512, 1, 2), Tiles(8, 4096, 8, 3), Tiles(2, 2048, 4, 4)], ids=str)
def test_any_cut_gives_the_product(tiles: Tiles) -> None:
    x, weight, norm = random(1, 1100, dtype=torch.bfloat16), random(9, 1100, dtype=torch.bfloat16, seed=1), Norm(random(1100, seed=4), 1e-5)
    assert_close(multiply(x, weight, None, "none", None, norm, tiles), defined(x, weight, None, norm))


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 4), (3, 64), (5, 512), (9, 2600)])
def test_a_row_of_codes_has_the_bits_that_it_has_among_others(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(inputs)
    codes = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8).to(DEVICE)
    scales, bias = random(outputs, 1, seed=1).abs(), random(outputs, seed=2)
    add, row = random(1, outputs, dtype=dtype, seed=3), quantise_rows(random(1, inputs, seed=4), None)
    weight = Codes(codes, inputs, scales, None, bias, new_counters(DEVICE))

    got = multiply_codes(row, codes, scales, bias, "none", add, dtype)

    assert torch.equal(got, multiply_tiles(row, weight, "none", add, dtype))
    assert torch.equal(
        multiply_codes(row, codes, scales, None, "silu", None, dtype), multiply_tiles(row, weight._replace(bias=None), "silu", None, dtype)
    )


@pytest.mark.parametrize(("outputs", "inputs"), [(3, 64), (9, 2600)])
def test_a_row_of_float8_is_multiplied(outputs: int, inputs: int) -> None:
    if not takes_float8():
        pytest.skip("this device has no such numbers")
    codes, scales = random(outputs, inputs, seed=1).to(torch.float8_e4m3fn), random(outputs, 1, seed=2).abs()
    row, add = quantise_rows_to_fp8(random(1, inputs, seed=3)), random(1, outputs, seed=4)
    expected = (row.codes.double() * row.scales.double()) @ (codes.double() * scales.double()).t() + add.double()
    assert_close(multiply_codes(row, codes, scales, None, "none", add, torch.float32), expected)
