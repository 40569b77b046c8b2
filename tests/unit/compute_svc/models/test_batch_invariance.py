"""The same request gives the same bytes, whatever else is in the batch and however its tokens came there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.config import StreamingWindow
from compute_svc.models.registry import load_model
from tests.examples import examples
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.forward_driver import DrivenRequest, ForwardDriver
from tests.fakes.quantised_checkpoints import SCHEMES, save_quantised

MODELS: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "gqa": (
        "llama",
        torch.float32,
        {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "hidden_size": 64, "intermediate_size": 192},
    ),
    "mqa-odd-sizes": (
        "qwen3",
        torch.float32,
        {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 12, "intermediate_size": 37},
    ),
    "window": ("mistral", torch.float32, {"sliding_window": 140, "num_attention_heads": 2, "num_key_value_heads": 2}),
    "bfloat16": ("qwen2", torch.bfloat16, {"head_dim": 16}),
    "slopes": ("bloom", torch.float32, {}),
    "slopes-bfloat16": ("mpt", torch.bfloat16, {}),
    "caps-windows-float32-norms": ("gemma2", torch.bfloat16, {"sliding_window": 140}),
    "experts-shared": ("qwen2_moe", torch.float32, {}),
    "experts-bfloat16": ("mixtral", torch.bfloat16, {}),
    "learnt-positions-layer-norm": ("gpt2", torch.float32, {}),
    "neighbours-turn-parallel": ("gptj", torch.float32, {}),
    "norms-behind-all-heads-together-odd-heads": ("olmo2", torch.float32, {"head_dim": 10, "num_key_value_heads": 3}),
    "rounded-slopes": ("falcon", torch.bfloat16, {"alibi": True, "multi_query": False, "parallel_attn": False}),
    "latent-experts-in-groups": ("deepseek_v3", torch.float32, {"q_lora_rank": 14}),
    "sink-logits-windows-clamped-experts": ("gpt_oss", torch.bfloat16, {"sliding_window": 140}),
    "sinks": ("llama", torch.float32, {}),
    "sinks-partly-turning-bfloat16": ("gpt_neox", torch.bfloat16, {"rotary_pct": 0.5}),
    "sinks-mixed-windows-caps": ("gemma2", torch.float32, {"sliding_window": 40}),
    "kv-int8-g8": ("llama", torch.float32, {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32}),
    "kv-int8-g32-window-odd-heads-bfloat16": ("mistral", torch.bfloat16, {"sliding_window": 140, "head_dim": 36}),
    "kv-int8-g64-sinks": ("llama", torch.float32, {}),
    "kv-bfloat16": ("qwen3", torch.float32, {}),
    "weights-int8": ("llama", torch.float32, {"head_dim": 16, "num_key_value_heads": 2}),
    "weights-int4-in-groups-experts-bfloat16": (
        "qwen2_moe",
        torch.bfloat16,
        {"hidden_size": 64, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "head_dim": 16},
    ),
}
# Of weights that are not floating numbers.
WEIGHTS = {"weights-int8": "int8", "weights-int4-in-groups-experts-bfloat16": "int4"}
STREAMING = {
    "sinks": StreamingWindow(tokens=37),
    "kv-int8-g64-sinks": StreamingWindow(tokens=37),
    "sinks-partly-turning-bfloat16": StreamingWindow(tokens=140, sinks=32),
    "sinks-mixed-windows-caps": StreamingWindow(tokens=100, sinks=1),
}


# What the store holds, where it is not what the model computes in.
KV_FORMATS = {
    "kv-int8-g8": "int8-g8",
    "kv-int8-g32-window-odd-heads-bfloat16": "int8-g32",
    "kv-int8-g64-sinks": "int8-g64",
    "kv-bfloat16": "bfloat16",
}


class Served(NamedTuple):
    """A model, and what its KV is stored as."""

    model: CausalLM
    kv_format: str

    def driver(self, *, num_pages: int, page_size_tokens: int = 16, seed: int = 0) -> ForwardDriver:
        return ForwardDriver(self.model, num_pages=num_pages, page_size_tokens=page_size_tokens, seed=seed, kv_format=self.kv_format)


@pytest.fixture(scope="module", params=MODELS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    family, dtype, overrides = MODELS[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    if scheme := WEIGHTS.get(request.param):
        folder = save_quantised(folder, family, SCHEMES[scheme], num_hidden_layers=2, **overrides)
    else:
        save_checkpoint(folder, family, num_hidden_layers=2, **overrides)
    model = load_model(folder, dtype=dtype, device=torch.device("cpu"), streaming=STREAMING.get(request.param))
    return Served(model, KV_FORMATS.get(request.param, "auto"))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tokens_of(length: int, seed: int) -> list[int]:
    return torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def alone(served: Served, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of every token, and the KV, of one request prefilled whole, on one thread."""
    driver = served.driver(num_pages=32)
    request = driver.request(tokens, len(tokens))
    with threads(1):
        logits = driver.step([], [(request, len(tokens))], all_logits=True)
    return logits, driver.stored(request)


def assert_same_bytes(driver: ForwardDriver, request: DrivenRequest, logits: torch.Tensor, kv: torch.Tensor) -> None:
    computed = torch.cat(request.logits)
    assert torch.equal(computed, logits[len(logits) - len(computed) :])
    assert torch.equal(driver.stored(request), kv)


@examples(30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(1, 300),
    chunks=st.lists(st.integers(1, 150), min_size=1, max_size=6),
    decodes=st.integers(0, 5),
    neighbours=st.lists(st.tuples(st.integers(1, 280), st.booleans()), max_size=7),
    seed=st.integers(0, 1000),
)
def test_logits_and_kv_depend_on_nothing_but_the_tokens_before(
    served: Served, length: int, chunks: list[int], decodes: int, neighbours: list[tuple[int, bool]], seed: int
) -> None:
    tokens = tokens_of(length + decodes, seed)
    logits, kv = alone(served, tokens)
    driver = served.driver(num_pages=200, page_size_tokens=16, seed=seed)
    request = driver.request(tokens, len(tokens))
    others = []
    for index, (other_length, decoding) in enumerate(neighbours):
        other = driver.request(tokens_of(other_length + 20, index), other_length + 20)
        if decoding:
            driver.step([], [(other, other_length)])
        others.append((other, decoding))

    for chunk in [*chunks, length]:
        count = min(chunk, length - request.num_computed)
        if count:
            prefills = [(other, 1 + index) for index, (other, decoding) in enumerate(others) if not decoding]
            driver.step([other for other, decoding in others if decoding], [*prefills, (request, count)], all_logits=True)
            others = [(other, True) for other, _ in others]
    for _ in range(decodes):
        driver.step([other for other, _ in others[:3]] + [request] + [other for other, _ in others[3:]], [], all_logits=True)

    assert_same_bytes(driver, request, logits, kv)


@pytest.mark.slow
def test_decoding_among_64_is_decoding_alone_on_any_number_of_threads(served: Served) -> None:
    lengths = [1 + (index * 37) % 270 for index in range(64)]
    driver = served.driver(num_pages=1200, page_size_tokens=16)
    requests = [driver.request(tokens_of(length + 2, index), length + 2) for index, length in enumerate(lengths)]
    # Each number prefills requests that the other decodes, and those that it decodes itself.
    for start, count in zip(range(0, 64, 16), (2, 5, 2, 5), strict=True):
        with threads(count):
            driver.step([], list(zip(requests[start : start + 16], lengths[start : start + 16], strict=True)))
    for request in requests:
        request.logits.clear()

    for count in (2, 5):
        with threads(count):
            driver.step(requests, [])

    for request in requests[::5]:
        assert_same_bytes(driver, request, *alone(served, request.tokens))


def test_a_prefix_hit_continues_as_if_the_prefix_had_been_computed(served: Served) -> None:
    tokens = tokens_of(200, 3)
    logits, kv = alone(served, tokens)
    driver = served.driver(num_pages=64)
    owner = driver.request(tokens[:150] + tokens_of(30, 4), 180)
    driver.step([], [(owner, 180)])
    request = driver.request(tokens, len(tokens), share=owner, shared_pages=9)

    driver.step([], [(request, len(tokens) - request.num_computed)], all_logits=True)

    assert_same_bytes(driver, request, logits, kv)


@pytest.mark.slow
@pytest.mark.parametrize("page_size_tokens", [1, 7, 24, 128, 256])
def test_the_page_size_changes_nothing(served: Served, page_size_tokens: int) -> None:
    tokens = tokens_of(261, 5)
    logits, kv = alone(served, tokens)
    driver = served.driver(num_pages=600 // page_size_tokens + 2, page_size_tokens=page_size_tokens)
    request = driver.request(tokens, len(tokens))

    for count in (130, 130):
        driver.step([], [(request, count)], all_logits=True)
    driver.step([request], [], all_logits=True)

    assert_same_bytes(driver, request, logits, kv)
