"""Whatever a checkpoint's tensors are, reading ends in a weight of the shape that was said, or in an error that names one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compute_svc.models.weights import CheckpointError
from tests.fakes.raw_checkpoint import read_coded
from tests.quantised_golden import CASES, SECTIONS, TENSORS, WIDTH

SAVED = json.loads(SECTIONS.read_text())
DTYPES = (torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e8m0fnu)
# Which tensors say how they are stored: a field that is absent or another is another way of storing, or none.
VALUES: tuple[Any, ...] = (None, True, 0, -1, 1 << 70, 0.5, "x", [], {}, [1, 2, 3])


def changed(part: torch.Tensor) -> Iterator[torch.Tensor | None]:
    """What may stand in a part's place; None = nothing."""
    yield None
    yield part.reshape(-1)
    yield part.reshape(1, *part.shape)
    yield part.reshape(-1, 1)
    if part.ndim:
        yield part[:0]
        yield part[:-1]
        yield torch.cat((part.view(torch.uint8), part.view(torch.uint8))).view(part.dtype)
    if part.ndim > 1:
        yield part.transpose(0, 1).contiguous()
    for dtype in DTYPES:
        if dtype != part.dtype:
            yield part.float().to(dtype)
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        yield torch.full((part.nbytes,), byte, dtype=torch.uint8).view(part.dtype).view(part.shape)


@pytest.mark.parametrize("name", CASES)
def test_parts_of_any_shape_dtype_and_content_are_read_or_named(name: str) -> None:
    whole = {key.removeprefix(f"{name}/"): tensor for key, tensor in load_file(TENSORS).items() if key.startswith(f"{name}/")}
    del whole["expected"]
    outcomes = set()
    for part, tensor in whole.items():
        for other in changed(tensor):
            parts = {key: value for key, value in whole.items() if key != part} | ({} if other is None else {part: other})
            outcomes.add(is_refused(SAVED[name]["section"], parts))
    assert True in outcomes


@pytest.mark.parametrize("name", CASES)
def test_sections_with_any_values_are_read_or_named(name: str) -> None:
    whole = {key.removeprefix(f"{name}/"): tensor for key, tensor in load_file(TENSORS).items() if key.startswith(f"{name}/")}
    del whole["expected"]
    for section in changed_sections(SAVED[name]["section"]):
        is_refused(section, whole)


def changed_sections(section: Any) -> Iterator[dict[str, Any]]:
    """A section with each field, of inner objects too, once as each of `VALUES`."""
    for field, value in section.items():
        yield from ({**section, field: other} for other in VALUES)
        if isinstance(value, dict):
            yield from ({**section, field: inner} for inner in changed_sections(value))


def is_refused(section: dict[str, Any], parts: dict[str, torch.Tensor]) -> bool:
    try:
        others = {"embed_tokens.weight": torch.zeros(100, WIDTH)}
        weights = read_coded(section, others | {f"layer.proj.{part}": tensor for part, tensor in parts.items()})
    except CheckpointError as error:
        assert "config.json" in str(error) and len(str(error)) < 500
        return True
    for weight in weights.values():
        assert weight.is_finite()
        assert weight.dense(torch.float32).isfinite().all()
    return not weights
