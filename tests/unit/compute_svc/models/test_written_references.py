"""Families that transformers does not ship give what their written references give, prompt and continuation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compute_svc.models.registry import load_model
from tests.fakes.forward_driver import ForwardDriver, greedy
from tests.oracle.references import CASES, ReferenceCase

CPU = torch.device("cpu")
PARAMS = [pytest.param(case, id=case.name) for case in CASES]


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 97, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("case", PARAMS)
def test_logits_and_greedy_continuations_are_those_of_the_written_reference(case: ReferenceCase, tmp_path: Path) -> None:
    reference = case.build()
    reference.save(tmp_path)
    model = load_model(tmp_path, dtype=torch.float32, device=CPU)
    prompts = prompts_of(1, 17, 40, 190)

    continuations = greedy(ForwardDriver(model), prompts, 24, chunk_tokens=13, budget_tokens=29)

    for prompt, continuation in zip(prompts, continuations, strict=True):
        tokens = prompt + continuation
        expected = reference.logits(tokens)
        driver = ForwardDriver(model)
        whole = driver.step([], [(driver.request(tokens, len(tokens)), len(tokens))], all_logits=True)
        torch.testing.assert_close(whole, expected, atol=1e-4, rtol=0)
        assert expected[len(prompt) - 1 : -1].argmax(-1).tolist() == continuation


@pytest.mark.parametrize("case", PARAMS)
def test_every_parameter_of_a_reference_moves_its_logits(case: ReferenceCase) -> None:
    """A reference that forgot a tensor would agree with a loader that forgot it too."""
    reference = case.build()
    tokens = prompts_of(5)[0]
    expected = reference.logits(tokens)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in reference.tensors.items():
        reference.tensors[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
        assert (reference.logits(tokens) - expected).abs().max() > 1e-3, name
        reference.tensors[name] = tensor


@pytest.mark.parametrize("case", PARAMS)
def test_a_reference_does_not_look_ahead(case: ReferenceCase) -> None:
    reference = case.build()
    tokens = prompts_of(20)[0]

    torch.testing.assert_close(reference.logits(tokens[:11]), reference.logits(tokens)[:11], atol=1e-5, rtol=0)
