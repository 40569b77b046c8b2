"""The written references can be trusted as oracles; what we compute is compared with them in test_against_oracles.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.oracle.references import CASES, ReferenceCase, Streaming

PARAMS = [pytest.param(case, id=case.name) for case in CASES]


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 97, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.slow
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


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES if case.streaming is not None])
def test_a_cache_that_loses_nothing_changes_nothing_and_one_that_does_changes_what_comes_after(case: ReferenceCase) -> None:
    assert case.streaming is not None
    tokens = prompts_of(30)[0]
    plain = replace(case, streaming=None).build().logits(tokens)

    whole = replace(case, streaming=Streaming(window=30, sinks=4)).build().logits(tokens)
    small = replace(case, streaming=Streaming(window=11, sinks=4)).build().logits(tokens)

    torch.testing.assert_close(whole, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(small[:15], plain[:15], atol=1e-5, rtol=0)
    assert (small[15:] - plain[15:]).abs().amax(dim=1).min() > 1e-3
