"""Requests over every KV format: served together, found in the prefix cache or computed again after a preemption, each gets the bits it gets alone."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from compute_svc.engine.start.loading import load_engine
from compute_svc.kernels.native import NativeMode
from compute_svc.kv.kv_format import KV_FORMATS
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from compute_svc.settings import Settings
from compute_svc.wire.request import Request
from tests.fakes.checkpoints import edit_config, save_checkpoint
from tests.fakes.engine_reader import request_of
from tests.fakes.forward_driver import ForwardDriver, greedy
from tests.fakes.native_kernels import native_kernels
from tests.oracle.serving import PAGE_SIZE_TOKENS, Serving, small_engine

CPU = torch.device("cpu")
BYTES_PER_TOKEN = {name: format_.bytes_per_token(3, 2, 8) for name, format_ in KV_FORMATS.items()}
ON_A_CPU = [name for name in KV_FORMATS if not name.startswith("fp8")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small random checkpoint, named in the environment."""
    save_checkpoint(tmp_path, "llama")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("COMPUTE_MODEL", str(tmp_path))
    monkeypatch.setenv("COMPUTE_KV_CACHE_BYTES", str(1 << 20))
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    # Heads of more than one group.
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, "llama", head_dim=72, num_hidden_layers=2)
    return load_model(folder, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("kv_format", "native"), [("int8-g8", "auto"), ("int8-g64", "auto"), ("int8-g32", "off"), ("fp8-g64", "off"), ("bfloat16", "auto")]
)
def test_a_hit_a_merged_step_and_a_preemption_change_no_bit(model: CausalLM, kv_format: str, native: NativeMode) -> None:
    random = np.random.default_rng(1)
    shared = random.integers(0, 97, 40)
    prompts = [np.concatenate((shared, random.integers(0, 97, int(random.integers(1, 8))))).tolist() for _ in range(4)]
    with native_kernels(native):
        alone = [Serving(small_engine(model, 60, kv_format)).serve([request_of(1, prompt, 24)]) for prompt in prompts]
        serving = Serving(small_engine(model, 13, kv_format))
        together = serving.serve(
            [request_of(number, prompt, 24) for number, prompt in enumerate(prompts[:3])], [request_of(3, prompts[3], 24)]
        )

    assert together.num_preemptions and together.num_merged and together.num_partial
    assert together.cached_tokens[3] >= 40 // PAGE_SIZE_TOKENS * PAGE_SIZE_TOKENS
    for number, one in enumerate(alone):
        assert together.tokens[number] == one.tokens[1]
        assert torch.equal(together.logits[number], one.logits[1])


def test_codes_change_bits_but_hardly_any_logit(model: CausalLM) -> None:
    prompt = torch.randint(0, 97, (120,), generator=torch.Generator().manual_seed(3)).tolist()

    def logits(kv_format: str) -> torch.Tensor:
        driver = ForwardDriver(model, kv_format=kv_format)
        return driver.step([], [(driver.request(prompt, 120), 120)], all_logits=True)

    exact = logits("float32")
    errors = [float((logits(name) - exact).norm() / exact.norm()) for name in ("int8-g8", "int8-g32", "int8-g64")]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.05


@pytest.mark.parametrize("kv_format", ["auto", *ON_A_CPU])
def test_the_engine_stores_what_the_setting_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kv_format: str
) -> None:
    monkeypatch.setenv("COMPUTE_KV_FORMAT", kv_format)
    with caplog.at_level(logging.INFO):
        engine = load_engine(Settings())
    name = "float32" if kv_format == "auto" else kv_format
    assert (engine.dtype, engine.kv_format, engine.kv_bytes_per_page) == ("float32", name, 16 * BYTES_PER_TOKEN[name])
    assert engine.config.num_pages == (1 << 20) // (16 * BYTES_PER_TOKEN[name])
    assert f"stores KV in {name}: {BYTES_PER_TOKEN[name]} bytes a token, {16 * BYTES_PER_TOKEN[name]} a page" in caplog.text
    prompt = np.arange(60) * 7 % 97
    engine.submit(Request(0, "", prompt, np.empty(0, np.int64), 12, 0.0))
    answer: list[int] = []
    while (output := engine.step(0.0)) is not None:
        answer += [] if output.rows is None else output.rows.tokens.tolist()
    driver = ForwardDriver(load_model(folder, dtype=torch.float32, device=CPU), kv_format=kv_format)
    assert answer == greedy(driver, [prompt.tolist()], 12, chunk_tokens=7, budget_tokens=60)[0]


def test_auto_stores_what_the_folder_asks_for_and_a_setting_overrules_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_config(folder, triserve_kv_format="int8-g8")
    assert load_engine(Settings()).kv_format == "int8-g8"
    monkeypatch.setenv("COMPUTE_KV_FORMAT", "bfloat16")
    assert load_engine(Settings()).kv_format == "bfloat16"


def test_float8_is_refused_where_the_device_has_none_by_who_asks_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "is fp8-g64, which cpu cannot have: it takes a CUDA device of compute capability 8.9 or above"
    monkeypatch.setenv("COMPUTE_KV_FORMAT", "fp8-g64")
    with pytest.raises(ValueError, match=f"^COMPUTE_KV_FORMAT {reason}"):
        load_engine(Settings())
    monkeypatch.delenv("COMPUTE_KV_FORMAT")
    edit_config(folder, triserve_kv_format="fp8-g64")
    with pytest.raises(ValueError, match=f"triserve_kv_format of .*/config.json {reason}"):
        load_engine(Settings())
