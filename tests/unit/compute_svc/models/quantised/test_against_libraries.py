"""Weights that the publishing libraries stored are what these libraries make of them; `python -m tests.quantised_golden` asks them anew."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes.raw_checkpoint import read_coded
from tests.quantised_golden import CASES, SECTIONS, TENSORS, WIDTH

SAVED = json.loads(SECTIONS.read_text())


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = load_file(TENSORS)
    return saved


@pytest.mark.parametrize("name", CASES)
def test_weights_are_what_the_library_says_bit_for_bit(name: str, tensors: dict[str, torch.Tensor]) -> None:
    parts = {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
    expected = parts.pop("expected")
    others = {"embed_tokens.weight": torch.zeros(100, WIDTH)}
    weights = read_coded(SAVED[name]["section"], others | {f"layer.proj.{part}": tensor for part, tensor in parts.items()})
    (weight,) = weights.values()
    if name == "bitsandbytes-int8":
        # It multiplies by a constant near 1 / 127, and rounds twice.
        torch.testing.assert_close(weight.dense(torch.float32), expected.float(), rtol=3e-7, atol=0)
    else:
        # Computed in the dtype of its scales, where that is a narrow one.
        torch.testing.assert_close(weight.dense(expected.dtype), expected, rtol=0, atol=0)


def test_every_golden_weight_is_known_by_the_version_that_made_it() -> None:
    assert SAVED.keys() == CASES.keys()
    assert all(len(saved["made by"].split()) == 2 for saved in SAVED.values())
