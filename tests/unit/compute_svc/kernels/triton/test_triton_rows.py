"""Triton kernels that work row by row give what the references give; in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import DEVICE

import triton  # isort: skip
import triton.language as tl  # isort: skip

from compute_svc.kernels.activation import Activation, activate  # isort: skip
from compute_svc.kernels.gated_linear import gated_linear as gated_linear_anywhere  # isort: skip
from compute_svc.kernels.gated_linear import lay_out_gated  # isort: skip
from compute_svc.kernels.gated_linear import reference as gated_linear_reference  # isort: skip
from compute_svc.kernels.gated_linear.joined import join, joined  # isort: skip
from compute_svc.kernels.gated_linear.triton_kernel import gated, gated_linear  # isort: skip
from compute_svc.kernels.layer_norm import reference as layer_norm_reference  # isort: skip
from compute_svc.kernels.layer_norm.triton_kernel import layer_norm  # isort: skip
from compute_svc.kernels.linear import LinearWeight  # isort: skip
from compute_svc.kernels.quantise_rows import Norm, QuantisedRows, aten  # isort: skip
from compute_svc.kernels.quantise_rows import quantise_gated as quantise_gated_anywhere  # isort: skip
from compute_svc.kernels.quantise_rows.triton_kernel import quantise_gated, quantise_rows  # isort: skip
from compute_svc.kernels.rms_norm import reference as rms_norm_reference  # isort: skip
from compute_svc.kernels.rms_norm.triton_kernel import rms_norm  # isort: skip

# Largest error, relative to the reference's largest number.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
COLUMNS = [1, 15, 16, 63, 576]
ACTIVATIONS: list[Activation] = ["none", "silu", "gelu", "gelu_tanh", "relu", "sigmoid"]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_close(operation: str, got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Tells operation, dtype, largest error and where it is."""
    assert got.dtype == wanted.dtype and got.shape == wanted.shape, (
        f"{operation}: {got.dtype} {got.shape}, not {wanted.dtype} {wanted.shape}"
    )
    error = (got.float() - wanted.float()).abs() / wanted.float().abs().max().clamp(min=1e-30)
    worst = int(error.argmax())
    assert bool((error <= TOLERANCES[got.dtype]).all()), f"{operation} {got.dtype}: off by {error.max():.1e} at {worst}"


def assert_same_rows(got: QuantisedRows, wanted: QuantisedRows) -> None:
    """Bit for bit; what is wanted was computed on the CPU, where torch divides."""
    assert torch.equal(got.codes.cpu(), wanted.codes)
    torch.testing.assert_close(got.scales.cpu(), wanted.scales, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_rms_norm_of_rows_that_lie_apart(columns: int, dtype: torch.dtype) -> None:
    wide = random(3, columns + 5, dtype=dtype, seed=columns)
    x, weight = wide[:, :columns], wide[0, 5:].clone()
    assert_close("rms_norm", rms_norm(x, weight, 1e-5), rms_norm_reference.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "width"), [(1, 64), (5, 80), (40, 128)])
def test_rms_norm_of_some_heads_where_they_are(heads: int, width: int, dtype: torch.dtype, per_head: bool) -> None:
    every = random(3, heads + 2, width + 4, dtype=dtype)
    before, some = every.clone(), every[:, :heads, :width]
    weight = random(heads, width, seed=1) if per_head else random(width, dtype=dtype, seed=1)

    assert rms_norm(some, weight, 1e-5, out=some) is some

    assert_close("rms_norm", some, rms_norm_reference.rms_norm(before[:, :heads, :width], weight, 1e-5))
    assert torch.equal(every[:, heads:], before[:, heads:]) and torch.equal(every[..., width:], before[..., width:])


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_layer_norm_of_rows_that_lie_apart(columns: int, dtype: torch.dtype, has_bias: bool) -> None:
    x = (random(3, columns + 5, dtype=dtype) + 3.0)[:, :columns]
    weight, bias = random(2, columns, dtype=dtype, seed=1).unbind(0)
    got = layer_norm(x, weight, bias if has_bias else None, 1e-5)
    wanted = layer_norm_reference.layer_norm(x, weight, bias if has_bias else None, 1e-5)
    assert_close("layer_norm", got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gate_is_activated_and_multiplied(activation: Activation, dtype: torch.dtype) -> None:
    for columns in (1, 63, 1100):
        product = random(3, 2 * columns, dtype=dtype) * 2.0
        gate, up = product[:, :columns], product[:, columns:]
        wanted = (activate(gate.float(), activation) * up.float()).to(dtype)
        assert_close(activation, gated(gate, up, activation), wanted)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_joined", [True, False])
def test_gated_linear_of_weights_that_lie_together_and_apart(is_joined: bool, has_bias: bool) -> None:
    gate, up = (LinearWeight.plain(random(40, 24, seed=n), random(40, seed=n + 2) if has_bias else None) for n in (1, 2))
    x, wanted = random(3, 24), gated_linear_reference.gated_linear(random(3, 24), gate, up, "silu")
    pair = join(gate, up) if is_joined else (gate, up)
    assert (joined(*pair) is not None) == is_joined
    assert_close("gated_linear", gated_linear(x, *pair, "silu"), wanted)
    assert_close("gated_linear", gated_linear_anywhere(x, *lay_out_gated(gate, up), "silu"), wanted)


def test_weights_that_lie_together_are_not_copied() -> None:
    both = random(8, 4)
    gate, up = LinearWeight.plain(both[:4], None), LinearWeight.plain(both[4:], None)
    assert join(gate, up)[0] is gate
    assert joined(up, gate) is None
    assert joined(gate, LinearWeight.plain(both[4:].clone(), None)) is None


def odd_rows(columns: int) -> torch.Tensor:
    """Zeros; what is not finite; halves between two codes; very large ones."""
    rows = random(8, columns).cpu()
    rows[0] = 0.0
    rows[1, columns // 2] = torch.nan
    rows[2, columns - 1] = -torch.inf
    rows[3] = (torch.arange(columns) % 254 - 127).float() + 0.5
    rows[3, 0] = 127.0
    rows[4] *= 1e37
    rows[5] = -0.0
    return rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_codes_and_scales_are_those_of_torchs_operations(columns: int, dtype: torch.dtype) -> None:
    x = odd_rows(columns).to(dtype)
    assert_same_rows(quantise_rows(x.to(DEVICE), None), aten.quantise_rows(x, None))


def test_scales_too_small_to_be_exact_are_those_of_torchs_operations() -> None:
    x = random(4, 100).cpu() * torch.tensor([1e-38, 1e-41, 1e-43, 1e-45])[:, None]
    assert_same_rows(quantise_rows(x.to(DEVICE), None), aten.quantise_rows(x, None))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
def test_normalised_rows_are_those_of_torchs_operations(columns: int, dtype: torch.dtype) -> None:
    x, norm = (random(5, columns + 3).cpu() * 3.0).to(dtype)[:, :columns], Norm(random(columns, seed=1).cpu(), 1e-5)
    x[0] *= 1e-3
    got = quantise_rows(x.to(DEVICE), Norm(norm.weight.to(DEVICE), norm.eps))
    assert_same_rows(got, aten.quantise_rows(aten.normalise(x, norm), None))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gated_row_is_quantised_from_float32(activation: Activation, dtype: torch.dtype) -> None:
    product = random(3, 2 * 333, dtype=dtype) * 3.0
    exact = (activate(product[:, :333].float(), activation) * product[:, 333:].float()).cpu()
    wanted = aten.quantise_rows(exact, None)
    for got in (quantise_gated(product, activation), quantise_gated_anywhere(product, activation)):
        if activation in ("none", "relu"):
            assert_same_rows(got, wanted)
        torch.testing.assert_close(got.scales.cpu(), wanted.scales, rtol=4e-6, atol=0.0)
        # A number close to the middle of two codes may have either.
        assert bool(((got.codes.cpu() * wanted.scales - exact).abs() <= wanted.scales * 0.501).all())


def test_the_rows_of_nothing_are_nothing() -> None:
    nothing = torch.empty((0, 8), device=DEVICE)
    assert rms_norm(nothing, random(8), 1e-5).shape == layer_norm(nothing, random(8), None, 1e-5).shape == (0, 8)
    assert gated(nothing, nothing, "silu").shape == quantise_rows(nothing, None).codes.shape == (0, 8)


@triton.jit
def _store_one(out):  # type: ignore[no-untyped-def]
    tl.store(out, 1.0)


def test_a_launch_that_no_device_takes_fails_in_the_interpreter_too() -> None:
    out = torch.zeros(1, device=DEVICE)
    with pytest.raises(AssertionError, match="num_warps"):
        _store_one[(1,)](out, num_warps=3)
    _store_one[(1,)](out, num_warps=4)
    assert out.item() == 1.0
