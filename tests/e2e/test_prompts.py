"""What real processes tell of prompts is what transformers says of the same model: sums that evaluations are made of, and embeddings."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.e2e.local_pipeline import Pipeline

TINY = Path(__file__).parents[1] / "tiny_model"
TEXT = "Triserve serves open-weight language models as three stages. What is a merge step? " * 13


class Reference(NamedTuple):
    """What transformers says of some ids: log-probabilities behind each, and what the output head gets of it."""

    logprobs: torch.Tensor
    hidden: torch.Tensor


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def reference(model: Any, ids: list[int]) -> Reference:
    with torch.no_grad():
        said = model(torch.tensor([ids]), output_hidden_states=True)
    return Reference(torch.log_softmax(said.logits[0].double(), dim=-1), said.hidden_states[-1][0].double())


def post(pipeline: Pipeline, path: str, **body: Any) -> Any:
    request = urllib.request.Request(f"{pipeline.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@pytest.fixture
def ids(pipeline: Pipeline) -> list[int]:
    ids: list[int] = post(pipeline, "/tokenize", prompt=TEXT)["tokens"]
    assert len(ids) > 200, "more than a step reads"
    return ids


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_the_likelihood_of_a_continuation_is_the_sum_that_the_model_gives(
    pipeline: Pipeline, model: Any, ids: list[int], max_tokens: int
) -> None:
    context = len(ids) - 40
    asked = {"prompt": ids, "max_tokens": max_tokens, "echo": True, "logprobs": 1, "temperature": 0}
    # As evaluations ask; the second finds the prompt in the prefix cache, and nothing of it may be missing.
    for _ in range(2):
        told = post(pipeline, "/v1/completions", **asked)["choices"][0]["logprobs"]
        assert len(told["tokens"]) == len(told["text_offset"]) == len(ids) + max_tokens, "what ends the answer is counted too"
        logprobs, tops = (told[name][context : len(ids)] for name in ("token_logprobs", "top_logprobs"))
        expected = reference(model, ids).logprobs[context - 1 : -1]
        wanted = torch.tensor(ids[context:])
        assert sum(logprobs) == pytest.approx(float(expected.gather(1, wanted[:, None]).sum()), abs=1e-3)
        is_greedy = [value == max(top.values()) for value, top in zip(logprobs, tops, strict=True)]
        assert is_greedy == (expected.argmax(dim=1) == wanted).tolist()


def test_tokens_of_a_prompt_have_their_ranks(pipeline: Pipeline, model: Any, ids: list[int]) -> None:
    answer = post(pipeline, "/v1/completions", prompt=ids, max_tokens=0, prompt_logprobs=3)
    first, *told = answer["choices"][0]["prompt_logprobs"]
    ranking = reference(model, ids).logprobs.sort(dim=1, descending=True, stable=True).indices.tolist()
    assert first is None and answer["usage"]["completion_tokens"] == 0
    for position, entries in enumerate(told):
        likely, own = ranking[position], ids[position + 1]
        assert entries[str(own)]["rank"] == 1 + likely.index(own)
        assert [int(token) for token in entries][:3] == likely[:3]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_the_models_states(pipeline: Pipeline, model: Any, ids: list[int], pooling: str) -> None:
    answer = post(pipeline, "/v1/embeddings", input=[ids, ids[:1]], pooling=pooling)
    for one, some in zip(answer["data"], (ids, ids[:1]), strict=True):
        hidden = reference(model, some).hidden
        vector = hidden.mean(dim=0) if pooling == "mean" else hidden[-1]
        torch.testing.assert_close(torch.tensor(one["embedding"]).double(), vector / vector.norm(), rtol=1e-4, atol=1e-6)
