"""Products of floats in the library's panels: close to the reference, in one order of sums whatever the rows, the threads and the instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.gated_linear import reference as gated_reference
from compute_svc.kernels.linear import Activation, LinearWeight, RowNorm, native, reference, whole_mlp
from compute_svc.kernels.native.float_weight import panel_weight
from compute_svc.kernels.rms_norm import rms_norm
from tests.fakes.kernel_closeness import assert_kernel_close
from tests.fakes.native_libraries import INSTRUCTION_SETS, native_library_for

DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
ACTIVATIONS: list[Activation] = ["none", "silu", "gelu", "gelu_tanh", "relu", "sigmoid"]
# Inputs of several stretches that are multiplied one after the other, outputs that fill no panel, rows of more than one task.
INPUTS, OUTPUTS, ROWS = 1030, 37, 131


@pytest.fixture(params=INSTRUCTION_SETS)
def built_for(request: pytest.FixtureRequest) -> Iterator[InstructionSet]:
    """Each instruction set that this CPU has; afterwards torch has the threads it had."""
    threads = torch.get_num_threads()
    yield native_library_for(request.param).instruction_set
    torch.set_num_threads(threads)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weight_of(outputs: int, inputs: int, dtype: torch.dtype, built_for: InstructionSet, seed: int) -> tuple[LinearWeight, LinearWeight]:
    """The same weight in panels, and as written."""
    weight, bias = random(outputs, inputs, dtype=dtype, seed=seed) / inputs**0.5, random(outputs, dtype=dtype, seed=seed + 1)
    panels = panel_weight(weight, bias, built_for)
    return LinearWeight("panels", panels.data, bias, inputs, outputs, panels=panels), LinearWeight.plain(weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_and_what_goes_with_them_are_the_reference(built_for: InstructionSet, dtype: torch.dtype) -> None:
    (gate, plain_gate), (up, plain_up) = (weight_of(OUTPUTS, INPUTS, dtype, built_for, seed) for seed in (0, 2))
    x, add = random(5, INPUTS, dtype=dtype, seed=4), random(5, OUTPUTS, dtype=dtype, seed=5)
    norm = RowNorm(random(INPUTS, dtype=torch.float32, seed=6), 1e-5)
    normed = rms_norm(x, norm.weight, norm.eps)
    for activation in ACTIVATIONS:
        assert_kernel_close(activation, native.linear(x, gate, activation, None, None), reference.linear(x, plain_gate, activation, None))
        gated = native.gated_linear(x, gate, up, activation, norm)
        assert_kernel_close(f"gated {activation}", gated, gated_reference.gated_linear(normed, plain_gate, plain_up, activation))
    assert_kernel_close("added", native.linear(x, gate, "none", add, norm), reference.linear(normed, plain_gate, "none", add))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "without a gate"])
def test_a_whole_mlp_is_its_products(built_for: InstructionSet, dtype: torch.dtype, gated: bool) -> None:
    (gate, plain_gate), (up, plain_up) = (weight_of(OUTPUTS, 50, dtype, built_for, seed) for seed in (0, 2))
    down, plain_down = weight_of(50, OUTPUTS, dtype, built_for, 8)
    x = random(ROWS, 50, dtype=dtype, seed=4)
    hidden = reference.linear(x, plain_gate if gated else plain_up, "silu", None).float()
    if gated:
        hidden *= reference.linear(x, plain_up, "none", None).float()
    expected = reference.linear(hidden.to(dtype), plain_down, "none", x)
    assert_kernel_close("mlp", native.float_mlp(x, gate if gated else None, up, down, "silu", None, x), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_on_itself_alone_whatever_the_threads(built_for: InstructionSet, dtype: torch.dtype) -> None:
    (gate, _), (up, _) = (weight_of(OUTPUTS, INPUTS, dtype, built_for, seed) for seed in (0, 2))
    down, _ = weight_of(INPUTS, OUTPUTS, dtype, built_for, 8)
    x, norm = random(ROWS, INPUTS, dtype=dtype), RowNorm(random(INPUTS, dtype=torch.float32, seed=6), 1e-5)
    torch.set_num_threads(2)
    whole = native.float_mlp(x, gate, up, down, "silu", norm, x), native.linear(x, gate, "gelu", None, norm)
    torch.set_num_threads(1)
    for num_rows in (*range(1, 15), 96, 97, 120):
        part = x[7 : 7 + num_rows]
        assert torch.equal(native.float_mlp(part, gate, up, down, "silu", norm, part), whole[0][7 : 7 + num_rows])
        assert torch.equal(native.linear(part, gate, "gelu", None, norm), whole[1][7 : 7 + num_rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_output_is_one_chain_of_fused_products_in_the_order_of_the_inputs(built_for: InstructionSet, dtype: torch.dtype) -> None:
    weight, x = random(OUTPUTS, INPUTS, dtype=dtype), random(2, INPUTS, dtype=dtype, seed=1)
    panels = panel_weight(weight, None, built_for)
    got = native.linear(x, LinearWeight("panels", panels.data, None, INPUTS, OUTPUTS, panels=panels), "none", None, None)
    sums = torch.zeros(2, OUTPUTS)
    for k in range(INPUTS):
        # Float64 holds a product of two float32 exactly; the sum is rounded to float32 from there, all but never otherwise than at once.
        sums = (x[:, k, None].double() * weight[:, k].double() + sums.double()).float()
    assert torch.equal(got, sums.to(dtype))


def test_rows_that_do_not_fit_a_weight_are_refused_before_memory_is_read(built_for: InstructionSet) -> None:
    (up, _), (down, _) = weight_of(OUTPUTS, 50, torch.float32, built_for, 0), weight_of(50, OUTPUTS, torch.float32, built_for, 2)
    x = torch.zeros(3, 50)
    with pytest.raises(ValueError, match="x has 49 columns, the weights take 50"):
        whole_mlp(x[:, :49], None, up, down, "silu")
    with pytest.raises(AssertionError, match=r"rows are of torch\.bfloat16"):
        native.linear(x.bfloat16(), up, "none", None, None)
    with pytest.raises(AssertionError, match="what is added is like the result"):
        native.linear(x, up, "none", x, None)
    with pytest.raises(AssertionError, match="one for each column"):
        native.gated_linear(x, up, up, "silu", RowNorm(torch.ones(49), 1e-5))
    with pytest.raises(AssertionError, match="down takes what is between"):
        native.float_mlp(x, None, up, up, "silu", None, None)
