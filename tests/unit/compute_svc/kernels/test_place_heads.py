"""Rotating and storing heads in one pass has the bits of one operation after the other."""

from __future__ import annotations

import pytest
import torch

from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.native import NativeMode
from compute_svc.kernels.native import heads as native
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.place_heads import aten, place_heads
from tests.fakes.native_kernels import native_kernels
from tests.fakes.native_libraries import INSTRUCTION_SETS, native_library_for

DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize(("head_dim", "rotary_dims"), [(64, 64), (20, 6), (7, 0)])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_one_pass_has_the_bits_of_one_operation_after_the_other(
    instruction_set: InstructionSet, head_dim: int, rotary_dims: int, stored: torch.dtype, given: torch.dtype
) -> None:
    library, num_tokens = native_library_for(instruction_set), 37
    heads = random(num_tokens + 3, 6 + 2 * 2, head_dim, dtype=given)
    # As a table's rows, cos and sin side by side.
    cos, sin = random(num_tokens + 3, 2, 1, rotary_dims, seed=1).unbind(1)
    slots = torch.randperm(64, generator=torch.Generator().manual_seed(2))[:num_tokens]
    layers = [KvLayer(torch.zeros((4, 4, 16, head_dim), dtype=stored)) for _ in range(2)]
    expected = heads.clone()

    aten.place_heads(expected, layers[0], slots, cos, sin, 6, rotary_dims)
    native.place_heads(library, heads, layers[1], slots, cos, sin, 6, rotary_dims)

    assert torch.equal(layers[1].data, layers[0].data)
    assert torch.equal(heads[:num_tokens], expected[:num_tokens])


@pytest.mark.parametrize("slot", [-1, 64])
@pytest.mark.parametrize("mode", ["off", "required"])
def test_a_slot_outside_the_store_is_refused(mode: NativeMode, slot: int) -> None:
    kv = KvLayer(torch.zeros((2, 4, 16, 8)))
    cos, sin = random(2, 2, 1, 8).unbind(1)

    with native_kernels(mode), pytest.raises(IndexError):
        place_heads(random(2, 3, 8), kv, torch.tensor([3, slot]), cos, sin, num_heads=1, rotary_dims=8)


@pytest.mark.parametrize("mode", ["off", "required"])
def test_codes_are_stored_in_either_mode(mode: NativeMode) -> None:
    kv = KvLayer(torch.zeros((2, 4, 16, 8), dtype=torch.int8), torch.zeros((2, 4, 16, 1), dtype=torch.float16), 8)
    cos, sin = random(2, 2, 1, 8).unbind(1)

    with native_kernels(mode):
        place_heads(random(2, 3, 8), kv, torch.tensor([3, 5]), cos, sin, num_heads=1, rotary_dims=8)

    assert kv.data[:, 0].abs().amax(dim=-1).nonzero().tolist() == [[0, 3], [0, 5], [1, 3], [1, 5]]
