"""Norms, rotations and writes to pages: torch's own operations against the references, and those against plain arithmetic."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.kv_write import kv_write
from compute_svc.kernels.kv_write import reference as kv_write_reference
from compute_svc.kernels.layer_norm import layer_norm
from compute_svc.kernels.layer_norm import reference as layer_norm_reference
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.rms_norm import reference as rms_norm_reference
from compute_svc.kernels.rms_norm import rms_norm
from compute_svc.kernels.rotary import reference as rotary_reference
from compute_svc.kernels.rotary import rotary_
from tests.fakes.kernel_closeness import assert_kernel_close

DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 63])
def test_rms_norm_is_the_reference(num_rows: int, dtype: torch.dtype) -> None:
    x, weight = random(num_rows, 50, dtype=dtype), random(50, dtype=dtype, seed=1)

    assert_kernel_close("rms_norm", rms_norm(x, weight, 1e-5), rms_norm_reference.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_takes_a_weight_per_head_and_heads_inside_wider_rows(dtype: torch.dtype) -> None:
    x, weight = random(17, 9, 12, dtype=dtype)[:, :5], random(5, 12, dtype=dtype, seed=1)

    assert_kernel_close("rms_norm", rms_norm(x, weight, 1e-5), rms_norm_reference.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("shape", [(50,), (5, 50)])
def test_rms_norm_multiplies_by_a_float32_weight_before_it_rounds(shape: tuple[int, ...]) -> None:
    x, weight = random(17, 5, 50, dtype=torch.bfloat16), 1 + random(*shape, seed=1) / 1000

    result = rms_norm(x, weight, 1e-5)

    assert result.dtype == torch.bfloat16
    assert torch.equal(result, rms_norm(x.float(), weight, 1e-5).bfloat16())
    assert_kernel_close("rms_norm", result, rms_norm_reference.rms_norm(x, weight, 1e-5))


def test_the_rms_norm_reference_does_what_its_formula_says() -> None:
    x, weight = random(3, 7).tolist(), random(7, seed=1).tolist()
    scales = [1 / math.sqrt(sum(value * value for value in row) / 7 + 0.1) for row in x]
    expected = [[value * scale * w for value, w in zip(row, weight, strict=True)] for row, scale in zip(x, scales, strict=True)]

    result = rms_norm_reference.rms_norm(torch.tensor(x), torch.tensor(weight), 0.1)

    assert_kernel_close("rms_norm", result, torch.tensor(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 63])
def test_layer_norm_is_the_reference(num_rows: int, with_bias: bool, dtype: torch.dtype) -> None:
    x, weight = random(num_rows, 50, dtype=dtype), random(50, dtype=dtype, seed=1)
    bias = random(50, dtype=dtype, seed=2) if with_bias else None

    assert_kernel_close("layer_norm", layer_norm(x, weight, bias, 1e-5), layer_norm_reference.layer_norm(x, weight, bias, 1e-5))


def test_the_layer_norm_reference_does_what_its_formula_says() -> None:
    x, weight, bias = random(3, 7).tolist(), random(7, seed=1).tolist(), random(7, seed=2).tolist()
    expected = []
    for row in x:
        mean = sum(row) / 7
        scale = 1 / math.sqrt(sum((value - mean) ** 2 for value in row) / 7 + 0.1)
        expected.append([(value - mean) * scale * w + b for value, w, b in zip(row, weight, bias, strict=True)])

    result = layer_norm_reference.layer_norm(torch.tensor(x), torch.tensor(weight), torch.tensor(bias), 0.1)

    assert_kernel_close("layer_norm", result, torch.tensor(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 63])
def test_rotary_is_the_reference_and_leaves_other_heads_alone(num_rows: int, dtype: torch.dtype) -> None:
    angles = random(num_rows, 1, 6, seed=1)
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((-angles, angles), -1).sin()
    wide = random(num_rows, 7, 12, dtype=dtype)
    expected = wide.clone()

    rotary_(wide[:, :4], cos, sin)

    rotary_reference.rotary_(expected[:, :4], cos, sin)
    assert_kernel_close("rotary", wide, expected)
    assert torch.equal(wide[:, 4:], expected[:, 4:])


def test_the_rotary_reference_multiplies_by_unit_complex_numbers() -> None:
    angles = random(5, 1, 3, seed=1)
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((-angles, angles), -1).sin()
    x = random(5, 2, 6)
    turned = torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones(()), angles)

    rotary_reference.rotary_(x, cos, sin)

    assert_kernel_close("rotary", x, torch.cat((turned.real, turned.imag), -1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 63])
def test_kv_write_writes_its_slots_and_no_others(num_rows: int, dtype: torch.dtype) -> None:
    slots = torch.randperm(80, generator=torch.Generator().manual_seed(2))[:num_rows]
    rows = random(num_rows, 9, 6, dtype=dtype)[:, 5:]
    expected = [[[torch.nan] * 6 for _ in range(80)] for _ in range(4)]
    for token, slot in enumerate(slots.tolist()):
        for head in range(4):
            expected[head][slot] = rows[token, head].tolist()

    for write in (kv_write, kv_write_reference.kv_write):
        kv = torch.full((4, 5, 16, 6), torch.nan, dtype=dtype)
        write(KvLayer(kv), slots, rows)
        torch.testing.assert_close(kv.view(4, 80, 6).float(), torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 4, 6])
@pytest.mark.parametrize("num_rows", [1, 15, 17])
def test_kv_write_writes_codes_as_the_reference_does(num_rows: int, group: int, dtype: torch.dtype) -> None:
    slots = torch.randperm(80, generator=torch.Generator().manual_seed(2))[:num_rows]
    rows = random(num_rows, 9, 6, dtype=dtype)[:, 5:]
    rows[0, 0, :2] = torch.tensor([0.0, torch.inf])
    rows[-1, 1] = torch.tensor([0.0, -0.0, 1e-9, 3e38, -3e38, 1.0])
    written = []
    for write in (kv_write, kv_write_reference.kv_write):
        kv = KvLayer(torch.full((4, 5, 16, 6), 99, dtype=torch.int8), torch.full((4, 5, 16, -(-6 // group)), -1.0).half(), group)
        write(kv, slots, rows)
        written.append(kv)

    (codes, scales), expected = ((one.data, one.scales) for one in written)
    assert torch.equal(codes, expected[0])
    torch.testing.assert_close(scales, expected[1], rtol=0, atol=0, equal_nan=True)
    untouched = torch.ones(80, dtype=torch.bool)
    untouched[slots] = False
    assert bool((codes.view(4, 80, 6)[:, untouched] == 99).all()) and int((codes == 99).sum()) >= 4 * 6 * (80 - num_rows)


@pytest.mark.parametrize(("stored", "given"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_kv_write_rounds_rows_to_what_the_store_holds(stored: torch.dtype, given: torch.dtype) -> None:
    rows = random(3, 4, 6, dtype=given)
    for write in (kv_write, kv_write_reference.kv_write):
        kv = torch.full((4, 1, 16, 6), torch.nan, dtype=stored)
        write(KvLayer(kv), torch.tensor([4, 0, 9]), rows)
        assert torch.equal(kv[:, 0, [4, 0, 9]], rows.to(stored).transpose(0, 1))


def test_kv_write_refuses_a_slot_outside_the_store() -> None:
    with pytest.raises(IndexError):
        kv_write(KvLayer(torch.zeros((2, 5, 16, 6))), torch.tensor([80]), torch.zeros((1, 2, 6)))


def test_an_operation_without_a_triton_kernel_runs_torch_operations_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert backend_for("some_operation", "meta") == "aten"

    assert caplog.messages == ["some_operation runs on its aten backend, torch's own operations: it has no Triton kernel"]
