"""The Triton kernel that places heads has the bits of one operation after the other; in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels.paged_kv.kv_codes import encode  # isort: skip
from compute_svc.kernels.paged_kv.kv_layer import KvLayer  # isort: skip
from compute_svc.kernels.place_heads import QueryKeyNorm, aten  # isort: skip
from compute_svc.kernels.place_heads.triton_kernel import place_heads  # isort: skip
from compute_svc.kernels.place_heads import place_heads as place_heads_anywhere  # isort: skip
from compute_svc.kernels.rms_norm import reference as rms_norm_reference  # isort: skip
from compute_svc.kernels.rotary import aten as rotary_aten  # isort: skip
from compute_svc.kernels.rotary.triton_kernel import rotary_  # isort: skip

DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
STORED = [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn]
NUM_HEADS, NUM_KV_HEADS, NUM_PAGES, PAGE_SIZE = 5, 2, 3, 4


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def empty_layer(dtype: torch.dtype, width: int, group: int) -> KvLayer:
    """On the CPU, of something that no test stores."""
    shape = (2 * NUM_KV_HEADS, NUM_PAGES, PAGE_SIZE)
    if not group:
        return KvLayer(torch.full((*shape, width), torch.nan, dtype=dtype))
    codes = torch.full((*shape, width), 85, dtype=torch.uint8).view(dtype)
    return KvLayer(codes, torch.full((*shape, -(-width // group)), 7.5, dtype=torch.float16), group)


def on_device(kv: KvLayer) -> KvLayer:
    return KvLayer(kv.data.to(DEVICE, copy=True), None if kv.scales is None else kv.scales.to(DEVICE, copy=True), kv.group)


def assert_same_bits(got: KvLayer, wanted: KvLayer) -> None:
    assert torch.equal(got.data.cpu().view(torch.uint8), wanted.data.view(torch.uint8))
    if wanted.scales is not None and got.scales is not None:
        torch.testing.assert_close(got.scales.cpu(), wanted.scales, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize(
    ("width", "rotary_dims", "group"),
    [(64, 64, 64), (64, 64, 8), (80, 32, 32), (80, 80, 8), (96, 96, 32), (128, 128, 8), (256, 64, 64), (20, 6, 8), (7, 0, 7)],
)
def test_one_kernel_has_the_bits_of_one_operation_after_the_other(
    width: int, rotary_dims: int, group: int, stored: torch.dtype, given: torch.dtype
) -> None:
    num_tokens = 3
    heads = random(num_tokens + 1, NUM_HEADS + 2 * NUM_KV_HEADS, width, dtype=given)
    # As a table's rows, cos and sin side by side.
    cos, sin = random(num_tokens + 1, 2, 1, rotary_dims, seed=1).unbind(1)
    slots = torch.tensor([9, 0, 6])
    wanted = empty_layer(stored, width, group if stored not in (torch.float32, torch.bfloat16) else 0)
    got, placed = on_device(wanted), heads.to(DEVICE, copy=True)

    aten.place_heads(heads, wanted, slots, cos, sin, NUM_HEADS, rotary_dims)
    cos, sin = torch.stack((cos, sin), dim=1).to(DEVICE).unbind(1)
    place_heads(placed, got, slots.to(DEVICE), cos, sin, NUM_HEADS, rotary_dims, None)

    assert torch.equal(placed[:num_tokens, :NUM_HEADS].cpu(), heads[:num_tokens, :NUM_HEADS])
    assert_same_bits(got, wanted)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_rows_with_a_slot_below_zero_write_nothing(stored: torch.dtype) -> None:
    heads, (cos, sin) = random(4, NUM_HEADS + 2 * NUM_KV_HEADS, 16), random(4, 2, 1, 16, seed=1).unbind(1)
    wanted = empty_layer(stored, 16, 8 if stored not in (torch.float32, torch.bfloat16) else 0)
    got, placed = on_device(wanted), heads.to(DEVICE, copy=True)
    aten.place_heads(heads[1:3].clone(), wanted, torch.tensor([3, 11]), cos[1:3], sin[1:3], NUM_HEADS, 16)

    place_heads(placed, got, torch.tensor([-1, 3, 11, -1], device=DEVICE), cos.to(DEVICE), sin.to(DEVICE), NUM_HEADS, 16, None)

    assert torch.equal(placed.cpu()[[0, 3]], heads[[0, 3]])
    assert_same_bits(got, wanted)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("given", DTYPES)
def test_codes_and_scales_of_numbers_at_the_borders_are_those_of_encode(given: torch.dtype, dtype: torch.dtype) -> None:
    group, width = 8, 128
    # The interpreter reads bfloat16 numbers below 1.2e-38 as others.
    numbers = random(32, width) * torch.logspace(-46 if given == torch.float32 else -36, 38, 32)[:, None]
    numbers[0], numbers[1, 3], numbers[2, 9], numbers[3] = 0.0, torch.nan, -torch.inf, -0.0
    numbers[4] = (torch.arange(width) - 64) + 0.5
    numbers[5] = torch.tensor([127.0, 2.5, -3.5, 0.5, 126.5, -0.5, 1.5, -127.0]).repeat(width // group) * 2.0**-24
    numbers[6] = torch.tensor([448.0, 2.0**-9, 2.0**-10, 3 * 2.0**-10, 2.0**-6, -(2.0**-11), 17.0, 19.0]).repeat(width // group)
    numbers[7] = torch.arange(width) * 2.0**-10 + 2.0**-6
    numbers[7, ::group] = 448.0
    numbers[8, :group] = torch.tensor([3e38, -9e6, 65504.0, 127 * 65504.0, 448 * 65504.0, 1.0, 2.0**-126, 0.0])
    heads = torch.zeros((8, 5, width)).to(given)
    heads[:, 1:] = numbers.view(8, 4, width).to(given)
    kv = KvLayer(torch.zeros((4, 2, 4, width), dtype=torch.uint8).view(dtype), torch.zeros((4, 2, 4, 16), dtype=torch.float16), group)
    got, none = on_device(kv), torch.empty((8, 1, 0), device=DEVICE)

    place_heads(heads.to(DEVICE), got, torch.arange(8, device=DEVICE), none, none, 1, 0, None)

    codes, scales = encode(heads[:, 1:].transpose(0, 1), group, dtype)
    assert_same_bits(got, KvLayer(codes.view(4, 2, 4, width), scales.view(4, 2, 4, 16), group))


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("is_public", [True, False])
@pytest.mark.parametrize(("width", "norm_width", "rotary_dims"), [(64, 64, 64), (48, 40, 32), (16, 16, 0)])
def test_queries_and_keys_are_normalised_before_they_are_rotated(
    width: int, norm_width: int, rotary_dims: int, is_public: bool, given: torch.dtype
) -> None:
    heads, compared = random(3, NUM_HEADS + 2 * NUM_KV_HEADS, width, dtype=given), NUM_HEADS + NUM_KV_HEADS
    heads[:, :compared, norm_width:] = 0.0
    weight, (cos, sin) = random(compared, norm_width, seed=2), random(3, 2, 1, rotary_dims, seed=1).unbind(1)
    slots, wanted = torch.tensor([9, 0, 6]), KvLayer(torch.zeros((2 * NUM_KV_HEADS, NUM_PAGES, PAGE_SIZE, width)))
    got, placed = on_device(wanted), heads.to(DEVICE, copy=True)

    norm, on = QueryKeyNorm(weight.to(DEVICE), 1e-5), [tensor.to(DEVICE) for tensor in (slots, cos, sin)]
    if is_public:
        place_heads_anywhere(placed, got, on[0], on[1], on[2], num_heads=NUM_HEADS, rotary_dims=rotary_dims, norm=norm)
    else:
        place_heads(placed, got, on[0], on[1], on[2], NUM_HEADS, rotary_dims, norm)
    heads[:, :compared, :norm_width] = rms_norm_reference.rms_norm(heads[:, :compared, :norm_width], weight, 1e-5)
    aten.place_heads(heads, wanted, slots, cos, sin, NUM_HEADS, rotary_dims)

    tolerance = 2e-6 if given == torch.float32 else 2e-2
    torch.testing.assert_close(placed[:, :NUM_HEADS].cpu(), heads[:, :NUM_HEADS], rtol=tolerance, atol=tolerance * 4)
    torch.testing.assert_close(got.data.cpu(), wanted.data, rtol=tolerance, atol=tolerance * 4)


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("dims", [128, 64, 6, 0])
def test_rotated_heads_have_the_bits_of_torchs_operations(dims: int, given: torch.dtype) -> None:
    heads, (cos, sin) = random(3, 9, dims + 5, dtype=given), random(3, 2, 1, dims // 2, seed=1).unbind(1)
    cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    got = heads.to(DEVICE, copy=True)
    rotary_(got[:, :7, :dims], cos.to(DEVICE), sin.to(DEVICE))
    rotary_aten.rotary_(heads[:, :7, :dims], cos, sin)
    assert torch.equal(got.cpu(), heads)


def test_every_float8_is_what_torch_makes_of_the_numbers_around_it() -> None:
    # In groups whose scale is one: every bfloat16 from 2^-11 to 448 and then some, and halves between neighbours with them.
    positive = torch.cat((torch.arange(448 * 32 + 1).float() / 32, torch.arange(4096).float() * 2.0**-18))
    numbers, width = torch.cat((positive, -positive)), 4096
    numbers = torch.nn.functional.pad(numbers, (0, -len(numbers) % (width - 1))).view(-1, width - 1)
    numbers = torch.cat((torch.full((len(numbers), 1), 448.0), numbers), dim=1)
    tokens = len(numbers)
    codes = torch.zeros((2, tokens, 1, width), dtype=torch.uint8).view(torch.float8_e4m3fn)
    got, none = (
        on_device(KvLayer(codes, torch.zeros((2, tokens, 1, 1), dtype=torch.float16), width)),
        torch.empty((tokens, 1, 0), device=DEVICE),
    )
    heads = numbers[:, None].repeat(1, 3, 1)

    place_heads(heads.to(DEVICE), got, torch.arange(tokens, device=DEVICE), none, none, 1, 0, None)

    assert torch.equal(got.data[0, :, 0].cpu().view(torch.uint8), numbers.to(torch.float8_e4m3fn).view(torch.uint8))
