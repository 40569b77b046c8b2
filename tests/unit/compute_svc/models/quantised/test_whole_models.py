"""A model stored as codes computes what one computes that is stored as the numbers they stand for, whatever the way of storing them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compute_svc.models.registry import load_model
from compute_svc.models.weights import open_checkpoint
from tests.fakes.forward_driver import ForwardDriver
from tests.fakes.published_codes import WAYS, save_coded

_TOKENS = [3, 77, 12, 90, 5, 41, 0, 66]


@pytest.mark.parametrize("way", WAYS)
def test_a_model_of_codes_computes_what_their_numbers_compute(way: str, tmp_path: Path) -> None:
    codes = save_coded(tmp_path, way)
    numbers = tmp_path / "numbers"
    with open_checkpoint(numbers) as checkpoint:
        names = checkpoint.tensors.keys()
    with open_checkpoint(codes) as checkpoint:
        assert checkpoint.tensors.keys() == names
        dense = {name: checkpoint.read(name, torch.float32, torch.device("cpu")) for name in names}
    save_file(dense, numbers / "model.safetensors")
    assert torch.equal(logits(codes), logits(numbers))


def logits(folder: Path) -> torch.Tensor:
    driver = ForwardDriver(load_model(folder, dtype=torch.float32, device=torch.device("cpu"), activations="float"))
    with torch.inference_mode():
        return driver.step([], [(driver.request(_TOKENS, len(_TOKENS)), len(_TOKENS))], all_logits=True)
