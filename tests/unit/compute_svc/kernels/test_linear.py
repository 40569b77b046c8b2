"""Products with weights, gated and not: the backends against the reference, row by row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from compute_svc.kernels.exact_products import use_exact_products
from compute_svc.kernels.gated_linear import aten as gated_aten
from compute_svc.kernels.gated_linear import gated_linear
from compute_svc.kernels.gated_linear import reference as gated_reference
from compute_svc.kernels.linear import Activation, LinearWeight, aten, linear, pack_linear, reference
from tests.fakes.kernel_closeness import assert_kernel_close

DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
ACTIVATIONS: list[Activation] = ["silu", "gelu", "gelu_tanh", "relu", "sigmoid"]
ROWS = [1, 2, 3, 15, 16, 17, 63]


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weights_of(outputs: int, inputs: int, dtype: torch.dtype, *, bias: bool, seed: int = 0) -> tuple[LinearWeight, LinearWeight]:
    """The same weight for a CPU and as written, for the other backends."""
    weight = random(outputs, inputs, dtype=dtype, seed=seed) / inputs**0.5
    vector = random(outputs, dtype=dtype, seed=seed + 1) if bias else None
    return pack_linear(weight, vector), LinearWeight.plain(weight, vector)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("num_rows", ROWS)
def test_linear_is_the_reference(num_rows: int, bias: bool, dtype: torch.dtype) -> None:
    fast, plain = weights_of(33, 50, dtype, bias=bias)
    x, add = random(num_rows, 50, dtype=dtype, seed=2), random(num_rows, 33, dtype=dtype, seed=3)

    assert_kernel_close("linear", linear(x, fast), reference.linear(x, plain, "none", None))
    assert_kernel_close("linear + add", linear(x, fast, add=add.clone()), reference.linear(x, plain, "none", add))
    assert_kernel_close("aten linear", aten.linear(x, plain, "none", None), reference.linear(x, plain, "none", None))
    assert_kernel_close("aten linear + add", aten.linear(x, plain, "none", add.clone()), reference.linear(x, plain, "none", add))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("num_rows", ROWS)
def test_activated_and_gated_products_are_the_reference(num_rows: int, activation: Activation, dtype: torch.dtype) -> None:
    (gate, plain_gate), (up, plain_up) = (weights_of(29, 50, dtype, bias=True, seed=seed) for seed in (0, 10))
    x = random(num_rows, 50, dtype=dtype, seed=2)

    assert_kernel_close(activation, linear(x, gate, activation=activation), reference.linear(x, plain_gate, activation, None))
    assert_kernel_close(
        f"aten {activation}", aten.linear(x, plain_gate, activation, None), reference.linear(x, plain_gate, activation, None)
    )
    expected = gated_reference.gated_linear(x, plain_gate, plain_up, activation)
    assert_kernel_close(f"gated {activation}", gated_linear(x, gate, up, activation), expected)
    assert_kernel_close(f"aten gated {activation}", gated_aten.gated_linear(x, plain_gate, plain_up, activation), expected)


def test_the_references_do_what_their_formulas_say() -> None:
    x, weight, bias = random(3, 5, dtype=torch.float64), random(4, 5, dtype=torch.float64), random(4, dtype=torch.float64)
    plain = LinearWeight.plain(weight.float(), bias.float())
    expected = torch.stack([(weight * row).sum(1) + bias for row in x])

    assert_kernel_close("linear", reference.linear(x.float(), plain, "none", None), expected.float())
    gated = gated_reference.gated_linear(x.float(), plain, plain, "silu")
    assert_kernel_close("gated", gated, (expected * expected / (1 + (-expected).exp())).float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_how_many_there_are(dtype: torch.dtype) -> None:
    (down, _), (gate, _), (up, _) = (weights_of(*shape, dtype, bias=False) for shape in ((48, 333), (333, 48), (333, 48)))
    x, residual = random(300, 48, dtype=dtype), random(300, 48, dtype=dtype)

    whole = linear(gated_linear(x, gate, up, "silu"), down, add=residual)

    for num_rows in [*range(1, 20), 63, 64, 65, 127, 200]:
        part = linear(gated_linear(x[7 : 7 + num_rows], gate, up, "silu"), down, add=residual[7 : 7 + num_rows])
        assert torch.equal(part, whole[7 : 7 + num_rows])


def test_weights_that_onednn_does_not_take_are_multiplied_all_the_same() -> None:
    weight, bias, x = random(6, 5, dtype=torch.float64), random(6, dtype=torch.float64), random(4, 5, dtype=torch.float64)

    packed = pack_linear(weight, bias)

    assert packed.layout == "plain"
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(linear(x, packed, add=expected), 2 * expected)
    torch.testing.assert_close(gated_linear(x, packed, packed, "silu"), F.silu(expected) * expected)


def test_a_wrong_number_of_columns_is_refused() -> None:
    weight = pack_linear(torch.ones((4, 5)))

    with pytest.raises(ValueError, match="x has 6 columns, the weight takes 5"):
        linear(torch.ones((3, 6)), weight)
    with pytest.raises(ValueError, match="x has 4 columns, the weights take 5"):
        gated_linear(torch.ones((3, 4)), weight, weight, "silu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", ROWS)
def test_cuda_multiplies_as_the_reference_does(num_rows: int, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    use_exact_products()
    weight, bias = random(333, 48, dtype=dtype) / 48**0.5, random(333, dtype=dtype, seed=1)
    x, add = random(num_rows, 48, dtype=dtype, seed=2), random(num_rows, 333, dtype=dtype, seed=3)
    plain, biased = LinearWeight.plain(weight, None), LinearWeight.plain(weight, bias)
    packed, packed_biased = pack_linear(weight.cuda()), pack_linear(weight.cuda(), bias.cuda())

    assert_kernel_close("linear", linear(x.cuda(), packed_biased).cpu(), reference.linear(x, biased, "none", None))
    assert_kernel_close("linear + add", linear(x.cuda(), packed, add=add.cuda()).cpu(), reference.linear(x, plain, "none", add))
    gated = gated_linear(x.cuda(), packed, packed_biased, "silu")
    assert_kernel_close("gated", gated.cpu(), gated_reference.gated_linear(x, plain, biased, "silu"))
