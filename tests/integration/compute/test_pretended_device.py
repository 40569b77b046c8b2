"""Whole engines as on a CUDA device, where there is none: kernels in Triton's interpreter, steps and draws as graphs, steps begun ahead.

They give the tokens that the same model gives on the CPU, in float32, where sums in another order change none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.start.loading import load_engine
from compute_svc.engine.steps.decode_graphs import decode_graphs
from compute_svc.kernels.backend import use_batch_invariance, use_triton_kernels
from compute_svc.kv.kv_format import KV_FORMATS
from compute_svc.kv.page_store import KvPageStore
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.settings import Settings
from compute_svc.wire.request import GREEDY, Request
from tests.bench.gpu import device_checks
from tests.bench.gpu.device_checks import ROUNDED_TOLERANCE, random_tokens, whole_logits
from tests.bench.gpu.random_model import FORMS, RandomWeights, build_random
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.device_memory import FakeDeviceMemory
from tests.pretend_cuda import pretend_cuda
from tests.triton_device import DEVICE
from triserve.rpc.sampling import Sampling

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="there is a real device")

CPU = torch.device("cpu")
PAGE_SIZE, NUM_PAGES, MAX_TOKENS = 4, 64, 40
DRAWS = (
    GREEDY,
    Sampling(temperature=0.8, top_k=5, seed=1),
    Sampling(temperature=1.0, top_p=0.7, seed=2),
    Sampling(temperature=1.0, min_p=0.1, repetition_penalty=1.5, seed=3),
)
# Which of them come before which step.
COMING = {0: (0, 1, 2), 4: (3,)}
# What each model has and no other one here.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped queries": ("llama", {"num_hidden_layers": 2}),
    "experts beside a shared one": ("qwen2_moe", {"num_hidden_layers": 2}),
    "soft caps and a window": ("gemma2", {"sliding_window": 9, "num_hidden_layers": 2}),
    "latent keys and values": ("deepseek_v3", {"q_lora_rank": 14, "num_hidden_layers": 2}),
    "sinks and clamped experts": ("gpt_oss", {"sliding_window": 9, "num_hidden_layers": 2}),
}
LAYER_BY_LAYER = MODELS | {
    "slopes": ("bloom", {"n_layer": 2}),
    "norms of queries and keys": ("qwen3", {}),
    "experts": ("mixtral", {}),
    "learnt positions": ("opt", {"word_embed_proj_dim": 20, "do_layer_norm_before": False}),
    "neighbours turn": ("gptj", {}),
    "output norms": ("glm4", {}),
    "norms of all heads": ("olmo2", {}),
    "rounded slopes": ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False}),
}


def answers(model: CausalLM, kv_format: str = "auto", num_tokens: int = 5) -> list[list[int]]:
    """Of requests that draw each in its own way; one comes while the others answer, with penalties, which no graph draws. Prompts come in chunks."""
    config = SchedulerConfig(PAGE_SIZE, NUM_PAGES, MAX_TOKENS, 14, len(DRAWS), len(DRAWS))
    format_ = KV_FORMATS[str(model.dtype).removeprefix("torch.") if kv_format == "auto" else kv_format]
    shape = (model.config.num_layers, NUM_PAGES, PAGE_SIZE, model.config.num_kv_heads, model.config.kv_head_dim)
    kv = KvPageStore(*shape, format_.dtype, model.device, group=format_.group)
    width = model.config.vocab_size
    engine = Engine(model, kv, config, logits_width=width, device=model.device, make_graphs=decode_graphs(model, kv, config))
    prompts = [prompt.astype(np.int64) for prompt in random_tokens(model, len(DRAWS), 9, seed=5).numpy()]
    found: list[list[int]] = [[] for _ in DRAWS]
    for step in range(100):
        for number in COMING.get(step, ()):
            engine.submit(_request(number, prompts[number], num_tokens))
        output = engine.step(0.0)
        assert output is not None and all(one.error is None for one in output.released)
        if output.rows is not None:
            for number, token in zip(output.rows.numbers.tolist(), output.rows.tokens.tolist(), strict=True):
                found[number].append(token)
        if all(len(answer) == num_tokens for answer in found):
            engine.assert_consistent()
            return found
    raise AssertionError(f"after 100 steps there is {found}")


def _request(number: int, prompt: np.ndarray, num_tokens: int) -> Request:
    return Request(number, str(number), prompt, np.empty(0, np.int64), num_tokens, 0.0, sampling=DRAWS[number])


def load(folder: Path, name: str, device: torch.device) -> CausalLM:
    family, fields = LAYER_BY_LAYER[name]
    if not folder.joinpath("config.json").exists():
        save_checkpoint(folder, family, **fields)
    return load_model(folder, dtype=torch.float32, device=device)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kv_format"), list(zip(MODELS, ["int8-g8", "float32"] * 3, strict=False)))
def test_triton_kernels_in_graphs_give_the_tokens_of_the_cpu(name: str, kv_format: str, tmp_path: Path) -> None:
    expected = answers(load(tmp_path, name, CPU), kv_format)
    with pretend_cuda() as pretended:
        model = load(tmp_path, name, pretended.device)
        assert "Triton kernels" in model.kernels
        pretended.waits.clear()
        assert answers(model, kv_format) == expected
        assert not pretended.waits, "no step waits but for what it has drawn"


@pytest.mark.parametrize("name", LAYER_BY_LAYER)
def test_torchs_own_operations_give_the_tokens_of_the_cpu(name: str, tmp_path: Path) -> None:
    expected = answers(load(tmp_path, name, CPU))
    with pretend_cuda() as pretended:
        use_triton_kernels("off", pretended.device.type)
        try:
            model = load(tmp_path, name, pretended.device)
            assert "Triton kernels" not in model.kernels
            pretended.waits.clear()
            assert answers(model) == expected
            assert not pretended.waits, "no step waits but for what it has drawn"
        finally:
            use_triton_kernels("auto", pretended.device.type)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_rounded_weights_give_near_the_logits_of_the_cpu(form: str) -> None:
    weights = RandomWeights("tiny", CPU, FORMS[form])
    exact = build_random(weights, torch.float32, CPU)
    tokens = random_tokens(exact, 1, 20, seed=1)[0]
    expected = whole_logits(exact, tokens)
    with pretend_cuda() as pretended:
        model = build_random(weights, torch.bfloat16, pretended.device)
        error = (whole_logits(model, tokens) - expected).square().mean().sqrt() / expected.std()
    assert error < ROUNDED_TOLERANCE


@pytest.mark.slow
def test_a_request_has_equal_bits_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_NEIGHBOURS": 2, "_PROMPT_TOKENS": 20, "_PREFIX_PAGES": 1, "_DECODES": 1}.items():
        monkeypatch.setattr(device_checks, name, value)
    with pretend_cuda() as pretended:
        use_batch_invariance(True, pretended.device.type)
        try:
            model = build_random(RandomWeights("tiny", CPU), torch.float32, pretended.device)
            assert "one order of sums" in model.kernels
            device_checks.check_invariance(model, promised=True)
        finally:
            use_batch_invariance(False, pretended.device.type)


@pytest.mark.slow
def test_an_engine_starts_on_a_device_and_answers(tmp_path: Path) -> None:
    model = load(tmp_path, "grouped queries", CPU)
    (tmp_path / "tokenizer.json").write_text("{}")
    settings: dict[str, Any] = {
        "model": tmp_path,
        "device": "cuda:0",
        "dtype": "float32",
        "kv_format": "int8-g8",
        "max_model_len_tokens": 16,
    }
    memory = FakeDeviceMemory(1 << 21, 1 << 18, [1 << 14])
    with pretend_cuda():
        engine = load_engine(Settings(**settings, max_running_requests=1, step_budget_tokens=9), memory=memory)
        engine.submit(_request(0, np.arange(9), 3))
        drawn: list[int] = []
        while len(drawn) < 3:
            output = engine.step(0.0)
            assert output is not None
            drawn += [] if output.rows is None else output.rows.tokens.tolist()
    assert (engine.dtype, engine.kv_format) == ("float32", "int8-g8") and "Triton kernels" in engine.kernels
    kv = KvPageStore(model.config.num_layers, 8, 16, model.config.num_kv_heads, model.config.kv_head_dim, torch.int8, CPU, group=8)
    alone = Engine(model, kv, SchedulerConfig(16, 8, 64, 32, 1, 1), logits_width=model.config.vocab_size, device=CPU)
    alone.submit(_request(0, np.arange(9), 3))
    outputs = [alone.step(0.0) for _ in range(3)]
    assert drawn == [one.rows.tokens.item() for one in outputs if one is not None and one.rows is not None]
