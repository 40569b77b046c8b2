"""What layers make of one row by kernels of one row is what they make of it step by step."""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels import gated_linear as gated_linear_module  # isort: skip
from compute_svc.kernels import linear as linear_module  # isort: skip
from compute_svc.kernels import row_linear  # isort: skip
from compute_svc.kernels.linear import LinearWeight, takes_norm  # isort: skip
from compute_svc.kernels.rms_norm import rms_norm  # isort: skip
from compute_svc.layers.heads import ProjectedHeads  # isort: skip
from compute_svc.layers.mlp import Mlp  # isort: skip
from compute_svc.layers.norm import Norm  # isort: skip

HIDDEN, WIDTH = 96, 130


@pytest.fixture(autouse=True)
def _device_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of plain weights go to Triton's kernels wherever tensors are."""
    for module in (gated_linear_module, linear_module, row_linear):
        monkeypatch.setattr(module, "backend_for", lambda *_, **__: "triton")


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def weight(outputs: int, inputs: int, seed: int) -> LinearWeight:
    return LinearWeight.plain(random(outputs, inputs, seed=seed) / inputs**0.5, None)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("is_gated", [True, False])
def test_an_mlp_takes_the_norm_and_adds_the_residual(is_gated: bool, rows: int) -> None:
    mlp = Mlp(weight(WIDTH, HIDDEN, 1) if is_gated else None, weight(WIDTH, HIDDEN, 2), weight(HIDDEN, WIDTH, 3), "silu")
    norm, x = Norm("rms", random(HIDDEN, seed=4), None, 1e-5), random(rows, HIDDEN, seed=5)
    assert mlp.takes_norm
    normed = rms_norm(x, norm.weight, norm.eps)
    up = normed @ mlp.up.data.t()
    hidden = up if mlp.gate is None else torch.nn.functional.silu(normed @ mlp.gate.data.t()) * up
    expected = x + (hidden if mlp.gate is not None else torch.nn.functional.silu(hidden)) @ mlp.down.data.t()

    # The sum is in the memory of the residual, which x may be, too.
    assert norm.of_rows is not None
    torch.testing.assert_close(mlp.forward(x, x, norm=norm.of_rows), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_heads_are_those_of_normalised_rows(rows: int) -> None:
    heads = ProjectedHeads(weight(64, HIDDEN, 1), None, None, 6, 8)
    norm, x = Norm("rms", random(HIDDEN, seed=4), None, 1e-5), random(rows, HIDDEN, seed=5)
    assert heads.takes_norm and norm.of_rows is not None
    expected = rms_norm(x, norm.weight, norm.eps) @ heads.qkv.data.t()
    torch.testing.assert_close(heads.forward(x, norm.of_rows), expected.view(rows, -1, 8), rtol=1e-5, atol=1e-5)


def test_a_norm_is_left_out_of_products_where_bits_may_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, row = weight(64, HIDDEN, 1), random(1, HIDDEN, seed=2)
    assert takes_norm(plain) and row_linear.takes_row(row)
    monkeypatch.setattr(linear_module, "is_batch_invariant", lambda: True)
    monkeypatch.setattr(row_linear, "is_batch_invariant", lambda: True)
    assert not takes_norm(plain) and not row_linear.takes_row(row)
