"""Searches through real processes: the beams that transformers finds with the same weights, texts that are those of the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from openai import OpenAI

from tests.e2e.local_pipeline import Pipeline

TINY = Path(__file__).parents[1] / "tiny_model"
QUESTION: Any = [{"role": "user", "content": "What is a merge step?"}]


@pytest.fixture
def client(pipeline: Pipeline) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{pipeline.url}/v1", api_key="x", timeout=60, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model() -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.mark.parametrize(("width", "length_penalty", "early_stopping"), [(3, 1.0, False), (2, 0.0, "never"), (4, 2.0, True)])
def test_beams_are_those_of_transformers(
    client: OpenAI, model: transformers.PreTrainedModel, width: int, length_penalty: float, early_stopping: bool | str
) -> None:
    for prompt in ([500, 501, 502], [1000, 7, 3000, 42, 42, *range(600, 640)]):
        theirs = model.generate(
            torch.tensor([prompt]),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=12,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            do_sample=False,
        )
        extra = {
            "use_beam_search": True,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "return_token_ids": True,
        }
        ours: Any = client.completions.create(model="tiny", prompt=prompt, n=width, max_tokens=12, logprobs=2, extra_body=extra)
        for choice, row in zip(ours.choices, theirs.tolist(), strict=True):
            tokens = choice.token_ids
            assert row[len(prompt) :][: len(tokens)] == tokens
            assert len(tokens) == 12 or tokens[-1] in (0, 4)
            assert choice.finish_reason == ("stop" if tokens[-1] in (0, 4) else "length")
            assert len(choice.logprobs.tokens) == len(tokens) - (choice.finish_reason == "stop")


def test_a_contrastive_search_takes_the_tokens_of_the_formula(client: OpenAI, model: transformers.PreTrainedModel) -> None:
    for prompt in ([500, 501, 502], [1000, 7, 3000, 42, 42, *range(600, 640)]):
        extra = {"penalty_alpha": 0.6, "top_k": 4, "return_token_ids": True, "ignore_eos": True}
        ours: Any = client.completions.create(model="tiny", prompt=prompt, max_tokens=10, extra_body=extra)
        assert ours.choices[0].token_ids == contrastive(model, prompt, alpha=0.6, top_k=4, max_tokens=10)
        assert ours.usage.completion_tokens == 1 + 4 * 10


@torch.inference_mode()
def contrastive(model: transformers.PreTrainedModel, prompt: list[int], *, alpha: float, top_k: int, max_tokens: int) -> list[int]:
    """The paper's formula over whole forward passes."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        probabilities, candidates = torch.softmax(model(torch.tensor([tokens])).logits[0, -1], dim=-1).topk(top_k)
        scores = []
        for probability, token in zip(probabilities.tolist(), candidates.tolist(), strict=True):
            hidden = model(torch.tensor([[*tokens, token]]), output_hidden_states=True).hidden_states[-1][0]
            likeness = torch.cosine_similarity(hidden[-1:], hidden[:-1]).max()
            scores.append((1 - alpha) * probability - alpha * float(likeness))
        tokens.append(candidates.tolist()[scores.index(max(scores))])
    return tokens[len(prompt) :]


def test_a_chat_s_best_beam_is_text_and_streams_in_one_piece(client: OpenAI) -> None:
    extra = {"use_beam_search": True, "best_of": 3}
    whole = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=40, logprobs=True, extra_body=extra)
    plain = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=40, temperature=0)
    # It knows the answer by heart: nothing is likelier.
    assert whole.choices[0].message.content == plain.choices[0].message.content
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(one.token for one in logprobs.content) == whole.choices[0].message.content
    chunks = list(client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=40, stream=True, extra_body=extra))
    assert [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].finish_reason] == [whole.choices[0].message.content]


def test_the_best_of_several_answers_is_one_that_alone_would_be_given(client: OpenAI) -> None:
    request: Any = {"model": "tiny", "messages": QUESTION, "max_tokens": 12, "temperature": 1.5, "seed": 5, "logprobs": True}
    every = client.chat.completions.create(**request, n=4).choices
    means = [sum(one.logprob for one in choice.logprobs.content) / len(choice.logprobs.content) for choice in every if choice.logprobs]
    best = client.chat.completions.create(**request, extra_body={"best_of": 4})
    assert [choice.message.content for choice in best.choices] == [every[means.index(max(means))].message.content]
    assert best.usage is not None and best.usage.completion_tokens >= 4
