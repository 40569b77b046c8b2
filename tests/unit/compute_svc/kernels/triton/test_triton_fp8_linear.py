"""Triton's products of float8 are the definition's; in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels.fp8_linear import Fp8Weight, fp8_gated_linear, fp8_linear, pack_fp8, quantise_rows_to_fp8, reference, scaled_mm  # isort: skip
from compute_svc.kernels.gated_linear import gated_linear  # isort: skip
from compute_svc.kernels.linear import fp8, linear  # isort: skip
from compute_svc.stored_weights.coded_weight import CodedWeight  # isort: skip
from tests.fakes.batch_invariance import batch_invariance  # isort: skip

# Largest error, relative to the reference's largest number. Matrix units add up float8 products in fewer bits than float32 has.
TOLERANCES = {torch.float32: 2e-3, torch.bfloat16: 6e-3}
WHOLE = 1 << 20

pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9), reason="the device has no instructions for float8"
)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(outputs: int, inputs: int, group: int = WHOLE, *, bias: bool = False, seed: int = 0) -> Fp8Weight:
    codes = (random(outputs, inputs, seed=seed) * 50.0).to(torch.float8_e4m3fn)
    scales = random(outputs, -(-inputs // group), seed=seed + 1).abs() * 0.02
    packed = pack_fp8(codes.to(DEVICE), group, scales.to(DEVICE), random(outputs, seed=seed + 2).to(DEVICE) if bias else None)
    assert packed.num_bytes < codes.nbytes + scales.nbytes + 4 * outputs * bias + 4096
    return packed


def exact(x: torch.Tensor, packed: Fp8Weight) -> torch.Tensor:
    rows = reference.quantise_rows_to_fp8(x, packed.row_group)
    result = reference.fp8_linear(rows, packed.data.cpu(), packed.group, packed.scales.cpu())
    return result if packed.bias is None else result + packed.bias.cpu().double()


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    error = (got.cpu().double() - wanted).abs() / wanted.abs().max()
    assert bool((error <= TOLERANCES[got.dtype]).all()), f"{got.dtype}: off by {error.max():.1e} at {int(error.argmax())}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("columns", "group"), [(1, None), (300, None), (300, 64), (256, 128)])
def test_rows_have_the_codes_and_scales_of_the_definition(columns: int, group: int | None, dtype: torch.dtype) -> None:
    x = (random(5, columns, seed=columns) * torch.tensor([[1.0], [1e-30], [3e4], [0.0], [1.0]])).to(dtype)
    x[4, columns // 2] = torch.inf
    got, wanted = quantise_rows_to_fp8(x.to(DEVICE), group), reference.quantise_rows_to_fp8(x, group)
    assert torch.equal(got.codes.cpu().float(), wanted.codes.float())
    assert torch.equal(got.scales.cpu(), wanted.scales)


def test_every_code_is_reached_and_ties_go_to_even() -> None:
    # Halfway between two codes, and a hair beside it.
    codes = torch.arange(0, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (codes[1:] + codes[:-1]) / 2
    x = torch.cat((torch.tensor([448.0]), codes, middles, middles * (1 + 2e-7), middles * (1 - 2e-7)))[None]
    x = torch.cat((x, -x))
    got, wanted = quantise_rows_to_fp8(x.to(DEVICE)), x.to(torch.float8_e4m3fn)
    assert torch.equal(got.codes.cpu().float(), wanted.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "group"),
    [(1, 17, 200, WHOLE), (2, 80, 1040, WHOLE), (17, 64, 300, 128), (65, 70, 96, 32), (3, 70, 200, 96)],
)
def test_products_of_all_shapes(rows: int, outputs: int, inputs: int, group: int, dtype: torch.dtype) -> None:
    packed, x = weight(outputs, inputs, group, bias=True), random(rows, inputs, seed=5).to(dtype)
    add = random(rows, outputs, seed=9).to(dtype)
    assert_close(fp8_linear(x.to(DEVICE), packed, add=add.to(DEVICE)), exact(x, packed) + add.double())
    assert not bool(packed.counters.any())


def test_activated_and_gated_products() -> None:
    gate, up, x = weight(40, 64, bias=True), weight(40, 64, seed=11), random(3, 64, seed=5)
    activated = torch.nn.functional.silu(exact(x, gate))
    assert_close(fp8_linear(x.to(DEVICE), gate, activation="silu"), activated)
    assert_close(fp8_gated_linear(x.to(DEVICE), gate, up, "silu"), activated * exact(x, up))


@pytest.mark.parametrize("bias", [False, True])
def test_torchs_own_products_of_many_rows_are_the_definition(bias: bool) -> None:
    packed, x = weight(48, 96, bias=bias), random(20, 96, seed=5).bfloat16()
    add, wanted = random(20, 48, seed=9).bfloat16(), exact(x, packed)
    rows = quantise_rows_to_fp8(x.to(DEVICE))
    assert_close(scaled_mm.multiply(rows, packed), wanted)
    assert_close(scaled_mm.multiply(rows, packed, "silu"), torch.nn.functional.silu(wanted))
    assert_close(scaled_mm.multiply(rows, packed, add=add.to(DEVICE)), wanted + add.double())


def test_torch_multiplies_many_rows_by_scales_of_outputs_alone_and_where_no_order_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaled_mm, "has_float8", lambda device: True)
    many, whole = torch.empty(129, 96, dtype=torch.bfloat16), weight(48, 96)
    assert scaled_mm.takes_rows(many, whole, whole)
    assert not scaled_mm.takes_rows(many[:128], whole)
    assert not scaled_mm.takes_rows(many.float(), whole)
    for other in (weight(48, 96, 32), weight(47, 96), weight(48, 90)):
        assert not scaled_mm.takes_rows(many, whole, other)
    with batch_invariance():
        assert not scaled_mm.takes_rows(many, whole)


def test_layers_go_to_torch_where_it_takes_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, up, x = weight(48, 64, bias=True), weight(48, 64, seed=11), random(20, 64, seed=5).bfloat16()
    asked: list[int] = []

    def takes_rows(some: torch.Tensor, *weights: Fp8Weight) -> bool:
        asked.append(len(weights))
        return True

    monkeypatch.setattr(scaled_mm, "takes_rows", takes_rows)
    add, activated = random(20, 48, seed=9).bfloat16(), torch.nn.functional.silu(exact(x, gate))
    assert_close(fp8_linear(x.to(DEVICE), gate, add=add.to(DEVICE)), exact(x, gate) + add.double())
    # Each product is rounded before they are multiplied.
    assert_close(fp8_gated_linear(x.to(DEVICE), gate, up, "silu"), activated * exact(x, up))
    assert asked == [1, 2]


def test_stored_weights_are_multiplied_by_as_they_are() -> None:
    codes = (random(40, 256, seed=1) * 50.0).to(torch.float8_e4m3fn)
    stored = CodedWeight(code="fp8", data=codes, num_columns=256, group=128, scales=random(40, 2, seed=2).abs() * 0.01, activations="fp8")
    packed, x = fp8.pack(stored.to(DEVICE), None), random(3, 256, seed=3).bfloat16()
    assert packed.fp8 is not None and packed.num_bytes < 2 * codes.nbytes
    wanted = exact(x, packed.fp8)
    assert_close(linear(x.to(DEVICE), packed), wanted)
    assert_close(gated_linear(x.to(DEVICE), packed, packed, "silu"), torch.nn.functional.silu(wanted) * wanted)
    numbers = x.double() @ stored.dense(torch.float32).double().t()
    assert float((wanted - numbers).abs().max() / numbers.abs().max()) < 0.05
