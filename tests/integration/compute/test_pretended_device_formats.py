"""Models of quantised checkpoints as on a CUDA device, where there is none, compute what their numbers compute on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from tests.fakes.forward_driver import ForwardDriver
from tests.fakes.published_codes import WAYS, save_coded
from tests.fakes.quantised_checkpoints import SCHEMES, save_quantised
from tests.pretend_cuda import pretend_cuda
from tests.triton_device import DEVICE

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="there is a real device")

TOKENS = [3, 77, 12, 90, 5, 41, 0, 66, 96, 18, 1, 50]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "qwen2_moe": {"hidden_size": 64, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "head_dim": 16},
}
# Activations are rounded to codes of eight bits, those of float8 to three bits behind the first.
DISTANCES = {"int8": 0.05, "int4": 0.05, "fp8": 0.15, "nf4": 1e-5}


def logits(model: CausalLM) -> torch.Tensor:
    driver = ForwardDriver(model)
    return driver.step([], [(driver.request(TOKENS, len(TOKENS)), len(TOKENS))], all_logits=True).cpu()


def distance(folder: Path) -> float:
    """Of the middle token, relative to how logits are spread."""
    exact = logits(load_model(folder, dtype=torch.float32, device=torch.device("cpu"), activations="float"))
    with pretend_cuda() as pretended:
        model = load_model(folder, dtype=torch.float32, device=pretended.device)
        assert "Triton kernels" in model.kernels
        there = logits(model)
    return float((there - exact).square().mean(dim=1).sqrt().median() / exact.std())


@pytest.mark.parametrize("way", WAYS)
def test_codes_as_they_are_published_become_their_numbers_in_kernels(way: str, tmp_path: Path) -> None:
    # BitNet's activations are rounded.
    assert distance(save_coded(tmp_path, way)) < (0.05 if way == "bitnet" else 1e-5)


@pytest.mark.parametrize("scheme", DISTANCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_are_quantised_here_come_near_their_numbers(family: str, scheme: str, tmp_path: Path) -> None:
    folder = save_quantised(tmp_path, family, SCHEMES[scheme], num_hidden_layers=1, **FAMILIES[family])
    assert distance(folder) < DISTANCES[scheme]
