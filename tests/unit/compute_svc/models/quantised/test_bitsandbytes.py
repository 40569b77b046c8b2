"""bitsandbytes' checkpoints mean what their layouts say, bit for bit; descriptions that do not fit are named."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from compute_svc.models.weights import CheckpointError
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import NF4
from tests.fakes import stored_formats
from tests.fakes.raw_checkpoint import assert_is, read_one

Parts = dict[str, torch.Tensor]
SECTION = {"quant_method": "bitsandbytes", "load_in_4bit": True}
STATE = "weight.quant_state.bitsandbytes__nf4"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_bytes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def as_bytes(content: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def state(shape: Any = (24, 96), **changed: Any) -> dict[str, Any]:
    return {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape), **changed}


def nf4_parts(shape: tuple[int, int], block: int, **more: Any) -> Parts:
    count = shape[0] * shape[1]
    return {
        "weight": random_bytes(-(-count // 2), 1),
        "weight.absmax": torch.rand(-(-count // block), generator=generator(1)),
        "weight.quant_map": torch.tensor(NF4),
        STATE: as_bytes(state(shape, blocksize=block, **more)),
    }


def nested(parts: Parts, shape: tuple[int, int], block: int, nested_block: int, offset: float) -> Parts:
    blocks = len(parts["weight.absmax"])
    return parts | {
        "weight.absmax": random_bytes(blocks, seed=2),
        "weight.nested_absmax": torch.rand(-(-blocks // nested_block), generator=generator(3)),
        "weight.nested_quant_map": torch.randn(256, generator=generator(4)),
        STATE: as_bytes(state(shape, blocksize=block, nested_blocksize=nested_block, nested_dtype="float32", nested_offset=offset)),
    }


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize(("shape", "block"), [((24, 128), 64), ((24, 96), 64), ((5, 40), 32), ((3, 64), 4096), ((7, 24), 64)])
def test_four_bits_are_read_exactly(shape: tuple[int, int], block: int, is_nested: bool) -> None:
    parts = nf4_parts(shape, block)
    if is_nested:
        parts = nested(parts, shape, block, 8, 0.03125)
    weight = read_one(SECTION, parts)
    assert_is(weight, stored_formats.bitsandbytes(parts, shape, block, 8 if is_nested else None, 0.03125))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_codes_may_be_stored_as_numbers_of_any_dtype(dtype: torch.dtype) -> None:
    parts = nf4_parts((24, 96), 64)
    expected = stored_formats.bitsandbytes(parts, (24, 96), 64, None, 0)
    assert_is(read_one(SECTION, parts | {"weight": parts["weight"].view(-1).view(dtype)[:, None]}), expected)


@pytest.mark.parametrize("layout", [None, torch.tensor(0, dtype=torch.uint8)])
def test_int8_is_read_with_its_scales(layout: torch.Tensor | None) -> None:
    parts = {"weight": random_bytes(24, 40).view(torch.int8), "SCB": torch.rand(24, generator=generator(5))}
    expected = stored_formats.by_block(parts["weight"], parts["SCB"][:, None] / 127, 1, 40)
    weight = read_one(SECTION, parts if layout is None else parts | {"weight_format": layout})
    assert isinstance(weight, CodedWeight) and weight.activations == "float"
    assert_is(weight, expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({STATE: as_bytes(state(blocksize=63))}, "blocksize 63 is not supported"),
        ({STATE: as_bytes(state(blocksize=True))}, "blocksize is True, it must be an integer"),
        ({STATE: as_bytes(state((24 * 96, 1)))}, "blocksize 64 is not supported for rows of 1"),
        ({STATE: as_bytes(state((1 << 31, 1 << 31)))}, "weight has the shape"),
        ({STATE: as_bytes(state((24, -96)))}, "shape is .* must list two sizes"),
        ({STATE: as_bytes(state((24, 96, 1)))}, "shape is .* must list two sizes"),
        ({STATE: as_bytes(state((24, 192)))}, r"weight has the shape \[1152, 1\], it must be \[2304, 1\]"),
        ({STATE: as_bytes(state(quant_type="fp4"))}, "quant_type is 'fp4', the tensor's name says nf4"),
        ({STATE: as_bytes([1])}, "must be a JSON object"),
        ({STATE: torch.tensor(list(b"[" * 4000), dtype=torch.uint8)}, "is no JSON"),
        ({STATE: torch.tensor([255, 254], dtype=torch.uint8)}, "is no JSON"),
        ({STATE: torch.zeros(5000, dtype=torch.uint8)}, "has 5000 bytes, the limit is 4096"),
        ({"weight.absmax": torch.rand(35)}, r"absmax has the shape \[35\], it must be \[36\]"),
        ({"weight.absmax": torch.full((36,), torch.inf)}, "absmax holds numbers that are not finite"),
        ({"weight.quant_map": torch.full((16,), torch.nan)}, "quant_map holds numbers that are not finite"),
        ({"weight.nested_absmax": torch.rand(1)}, "nested_offset is None, it must be a number"),
    ],
)
def test_descriptions_that_do_not_fit_are_named(changed: Parts, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_one(SECTION, nf4_parts((24, 96), 64) | changed)


def test_layouts_of_int8_for_gpus_are_refused() -> None:
    parts = {"weight": random_bytes(8, 8).view(torch.int8), "SCB": torch.rand(8), "weight_format": torch.tensor(2, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match="weight_format is 2, a layout of GPUs; only 0, rows, is read"):
        read_one(SECTION, parts)
