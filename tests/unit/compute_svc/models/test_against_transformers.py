"""Every family gives what the reference implementation gives, prompt and continuation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compute_svc.models.registry import load_model
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.forward_driver import ForwardDriver, greedy

CPU = torch.device("cpu")

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CASES = [
    pytest.param("llama", {}, id="llama-gqa"),
    pytest.param("llama", {"num_key_value_heads": 6, "tie_word_embeddings": True}, id="llama-mha-tied"),
    pytest.param("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}, id="llama-mqa-biases"),
    pytest.param("llama", {"head_dim": 20, "rope_parameters": LLAMA3_ROPE}, id="llama-wide-heads-llama3-rope"),
    pytest.param("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}, id="llama-linear-rope"),
    pytest.param("mistral", {"sliding_window": 11}, id="mistral-window-shorter-than-prompt"),
    pytest.param("mistral", {"sliding_window": 150, "head_dim": 12}, id="mistral-window-over-a-chunk"),
    pytest.param("mistral", {"sliding_window": None, "tie_word_embeddings": True}, id="mistral-no-window-tied"),
    pytest.param("qwen2", {"tie_word_embeddings": True, "head_dim": ...}, id="qwen2-tied"),
    pytest.param("qwen2", {"head_dim": ..., "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}, id="qwen2-window"),
    pytest.param("qwen3", {"head_dim": 16}, id="qwen3-wide-heads"),
    pytest.param("qwen3", {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True}, id="qwen3-mqa-biases-tied"),
]


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 97, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize(("family", "overrides"), CASES)
def test_logits_and_greedy_continuations_are_those_of_transformers(family: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    oracle = save_checkpoint(tmp_path, family, **overrides)
    model = load_model(tmp_path, dtype=torch.float32, device=CPU)
    prompts = prompts_of(1, 17, 40, 190)
    num_tokens = 24

    continuations = greedy(ForwardDriver(model), prompts, num_tokens, chunk_tokens=13, budget_tokens=29)

    for prompt, continuation in zip(prompts, continuations, strict=True):
        tokens = prompt + continuation
        with torch.inference_mode():
            expected = oracle(torch.tensor([tokens])).logits[0]
        driver = ForwardDriver(model)
        whole = driver.step([], [(driver.request(tokens, len(tokens)), len(tokens))], all_logits=True)
        torch.testing.assert_close(whole, expected, atol=1e-4, rtol=0)
        assert expected[len(prompt) - 1 : -1].argmax(-1).tolist() == continuation


def test_bfloat16_logits_are_close_to_those_of_transformers_in_bfloat16(tmp_path: Path) -> None:
    oracle = save_checkpoint(tmp_path, "qwen3", num_hidden_layers=2)
    model = load_model(tmp_path, dtype=torch.bfloat16, device=CPU)
    (tokens,) = prompts_of(150)
    driver = ForwardDriver(model)

    logits = driver.step([], [(driver.request(tokens, len(tokens)), len(tokens))], all_logits=True)

    with torch.inference_mode():
        exact = oracle(torch.tensor([tokens])).logits[0]
        rounded = oracle.bfloat16()(torch.tensor([tokens])).logits[0].float()
    error, usual_error = (logits - exact).square().mean().sqrt(), (rounded - exact).square().mean().sqrt()
    assert logits.dtype == torch.float32
    assert error < 1.2 * usual_error
