"""What is told of a prompt by a real model is the same bit by bit, however it was batched and cut into steps, and what the model says at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compute_svc.engine.engine import Engine
from compute_svc.kv.kv_format import choose_kv_format
from compute_svc.kv.page_store import KvPageStore
from compute_svc.models.causal_lm import CausalLM, Head
from compute_svc.models.registry import load_model
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.wire.request import HiddenStates
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.engine_reader import request_of
from tests.fakes.forward_driver import ForwardDriver
from triserve.rpc.sampling import Sampling

PROMPT = torch.randint(0, 97, (150,), generator=torch.Generator().manual_seed(4)).tolist()
CPU = torch.device("cpu")


@pytest.fixture(
    scope="module", params=[("qwen3", torch.float32), ("gemma2", torch.bfloat16), ("gpt2", torch.float32)], ids=lambda one: one[0]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, request.param[0], num_hidden_layers=2)
    return load_model(folder, dtype=request.param[1], device=CPU)


def told(
    model: CausalLM, hidden_states: HiddenStates, *, budget: int, others: int, max_tokens: int = 0, kv_format: str = "auto"
) -> tuple[list[tuple[object, ...]], bytes]:
    """Log-probability, rank and likeliest ids with theirs of each token of the prompt, and all hidden states."""
    config = SchedulerConfig(16, 200, 400, budget, 7, 64)
    sizes = model.config
    format_ = choose_kv_format(kv_format, None, model.dtype)
    kv = KvPageStore(sizes.num_layers, config.num_pages, 16, sizes.num_kv_heads, sizes.kv_head_dim, format_.dtype, CPU, group=format_.group)
    engine = Engine(model, kv, config, logits_width=sizes.vocab_size, device=CPU, hidden_states=model)
    random = np.random.default_rng(others)
    for number in range(others):
        prompt = random.integers(0, 97, int(random.integers(3, 90))).tolist()
        engine.submit(request_of(10 + number, prompt, 5, sampling=Sampling(temperature=0.0, prompt_logprobs=number % 3)))
    sampling = Sampling(temperature=0.0, prompt_logprobs=4)
    engine.submit(request_of(1, PROMPT, max_tokens, sampling=sampling, hidden_states=hidden_states))
    logprobs: list[tuple[object, ...]] = []
    vectors = b""
    while (output := engine.step(0.0)) is not None:
        if output.rows is not None:
            for part in output.rows.prompt_logprobs:
                if part.request == 1:
                    tops = [
                        tuple(zip(part.top_token, part.top_logprob, strict=True))[index : index + 4]
                        for index in range(0, len(part.top_token), 4)
                    ]
                    logprobs += zip(part.logprob, part.rank, tops, strict=True)
        vectors += b"".join(one.vectors for one in output.hidden if one.number == 1)
        assert all(released.error is None for released in output.released)
    return logprobs, vectors


@pytest.mark.parametrize("hidden_states", [HiddenStates.MEAN, HiddenStates.ALL])
def test_bits_depend_neither_on_the_batch_nor_on_the_steps(model: CausalLM, hidden_states: HiddenStates) -> None:
    whole = told(model, hidden_states, budget=300, others=0)
    assert len(whole[0]) == len(PROMPT) - 1
    for budget, others in ((300, 5), (7, 0), (23, 4), (64, 6)):
        assert told(model, hidden_states, budget=budget, others=others, max_tokens=others % 2) == whole


def test_bits_over_codes_depend_neither_on_the_batch_nor_on_the_steps(model: CausalLM) -> None:
    whole = told(model, HiddenStates.MEAN, budget=300, others=0, kv_format="int8-g8")
    assert told(model, HiddenStates.MEAN, budget=23, others=4, max_tokens=1, kv_format="int8-g8") == whole
    assert told(model, HiddenStates.MEAN, budget=300, others=0) != whole


def test_vectors_are_those_that_the_logits_are_made_of(model: CausalLM) -> None:
    driver = ForwardDriver(model, num_pages=32)
    request = driver.request(PROMPT, len(PROMPT))
    logits = driver.step([], [(request, len(PROMPT))], all_logits=True)
    _, vectors = told(model, HiddenStates.ALL, budget=64, others=0)
    hidden = torch.from_numpy(np.frombuffer(vectors, "<f4").reshape(len(PROMPT), -1).copy())
    head = model.head
    assert head is not None
    projected = Head(None, head.narrow, head.projection, head.scale, head.softcap).forward(hidden.to(model.dtype))
    assert torch.equal(projected, logits)
    _, mean = told(model, HiddenStates.MEAN, budget=64, others=0)
    np.testing.assert_allclose(np.frombuffer(mean, "<f4"), hidden.double().mean(dim=0).numpy(), rtol=1e-6)
    _, last = told(model, HiddenStates.LAST, budget=64, others=0)
    assert last == hidden[-1].numpy().tobytes()
