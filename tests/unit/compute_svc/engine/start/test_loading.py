"""From a checkpoint and settings to an engine that gives the reference implementation's tokens."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from compute_svc.engine.start.loading import load_engine, scheduler_config
from compute_svc.kv.kv_format import KvFormat
from compute_svc.models.config import StreamingWindow
from compute_svc.models.registry import load_model, read_model_config
from compute_svc.models.weights import CheckpointError
from compute_svc.scheduler.reservation import count_extents
from compute_svc.settings import Settings
from compute_svc.wire.request import Request
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.forward_driver import ForwardDriver, greedy

BYTES_PER_PAGE = 2 * 3 * 16 * 2 * 8 * 4
FLOAT32 = KvFormat(torch.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small random checkpoint, named in the environment."""
    save_checkpoint(tmp_path, "llama")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("COMPUTE_MODEL", str(tmp_path))
    monkeypatch.setenv("COMPUTE_KV_CACHE_BYTES", str(40 * BYTES_PER_PAGE))
    return tmp_path


def test_requests_of_mixed_lengths_are_answered_as_the_reference_answers_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = save_checkpoint(tmp_path, "qwen3")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("COMPUTE_MODEL", str(tmp_path))
    monkeypatch.setenv("COMPUTE_KV_CACHE_BYTES", str(14 * BYTES_PER_PAGE))
    monkeypatch.setenv("COMPUTE_STEP_BUDGET_TOKENS", "24")
    monkeypatch.setenv("COMPUTE_MAX_RUNNING_REQUESTS", "6")
    engine = load_engine(Settings())
    random = np.random.default_rng(0)
    shared = random.integers(0, 97, 33)
    prompts = [np.concatenate((shared[: 33 * (index % 2)], random.integers(0, 97, int(random.integers(1, 40))))) for index in range(8)]
    answers: dict[int, list[int]] = {number: [] for number in range(8)}
    for number, prompt in enumerate(prompts):
        engine.submit(Request(number, "", prompt, np.empty(0, np.int64), 20, 0.0))
    while (output := engine.step(0.0)) is not None:
        engine.assert_consistent()
        if output.rows is not None:
            for number, token in zip(output.rows.numbers, output.rows.tokens, strict=True):
                assert token is not None
                answers[number].append(token)
    for number, prompt in enumerate(prompts):
        inputs = torch.from_numpy(prompt)[None]
        expected = reference.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert answers[number] == expected[0, prompt.size :].tolist()
    assert engine.load.used_pages == 0
    assert engine.load.cached_tokens > 0
    assert engine.load.preemptions > 0


def test_sizes_come_from_settings_and_model(folder: Path) -> None:
    config = scheduler_config(Settings(), read_model_config(folder), FLOAT32)
    assert (config.num_pages, config.page_size_tokens, config.max_model_len_tokens) == (40, 16, 512)


def test_progress_is_logged_and_says_when_the_model_is_ready(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_engine(Settings())
    lines = [record.getMessage() for record in caplog.records]
    assert 3 <= sum(line.startswith("loaded ") for line in lines) <= 11
    assert sum(line.startswith("ready: LlamaForCausalLM") for line in lines) == 1
    assert "40 KV pages of 16 tokens" in lines[-1]


def test_a_longer_context_than_the_models_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_MAX_MODEL_LEN_TOKENS", "513")
    with pytest.raises(ValueError, match="COMPUTE_MAX_MODEL_LEN_TOKENS is 513, the limit is the model's own, 512"):
        scheduler_config(Settings(), read_model_config(folder), FLOAT32)


def test_triton_kernels_that_are_required_without_a_gpu_end_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_TRITON_KERNELS", "required")
    with pytest.raises(ValueError, match="COMPUTE_TRITON_KERNELS is required"):
        load_engine(Settings())


def test_too_little_memory_for_two_pages_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_KV_CACHE_BYTES", str(2 * BYTES_PER_PAGE - 1))
    with pytest.raises(ValueError, match=f"it must be at least {2 * BYTES_PER_PAGE}, two pages"):
        scheduler_config(Settings(), read_model_config(folder), FLOAT32)


def test_memory_for_less_than_the_context_shortens_requests_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("COMPUTE_KV_CACHE_BYTES", str(3 * BYTES_PER_PAGE))
    config = scheduler_config(Settings(), read_model_config(folder), FLOAT32)
    assert config.max_request_tokens == 48
    assert "a request has at most 48 tokens" in caplog.text


def test_the_streaming_window_of_the_settings_is_what_the_engine_serves_under(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("COMPUTE_STREAMING_WINDOW_TOKENS", "12")
    monkeypatch.setenv("COMPUTE_STREAMING_SINKS", "2")
    prompt = np.random.default_rng(0).integers(0, 97, 60)
    with caplog.at_level(logging.INFO):
        engine = load_engine(Settings())
    engine.submit(Request(0, "", prompt, np.empty(0, np.int64), 20, 0.0))
    answer: list[int] = []
    while (output := engine.step(0.0)) is not None:
        answer += [] if output.rows is None else output.rows.tokens.tolist()

    narrow, plain = (
        greedy(
            ForwardDriver(load_model(folder, dtype=torch.float32, device=torch.device("cpu"), streaming=streaming)),
            [prompt.tolist()],
            20,
            chunk_tokens=60,
            budget_tokens=60,
        )[0]
        for streaming in (StreamingWindow(tokens=12, sinks=2), None)
    )
    assert answer == narrow != plain
    assert "streaming: a token sees the first 2 tokens and at most 12 before it, itself included" in caplog.text


def test_a_streaming_window_is_refused_where_positions_do_not_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, "bloom")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("COMPUTE_MODEL", str(tmp_path))
    monkeypatch.setenv("COMPUTE_STREAMING_WINDOW_TOKENS", "12")
    with pytest.raises(CheckpointError, match="BloomForCausalLM cannot have one: it has ALiBi slopes"):
        load_engine(Settings())


@pytest.mark.parametrize(("reservation", "extents"), [("pages", 2), ("predicted", 1)])
def test_pages_are_reserved_as_the_setting_says(folder: Path, monkeypatch: pytest.MonkeyPatch, reservation: str, extents: int) -> None:
    monkeypatch.setenv("COMPUTE_KV_RESERVATION", reservation)
    engine = load_engine(Settings())
    for number in (1, 2):
        engine.submit(Request(number, "", np.full(10, number), np.empty(0, np.int64), 20, 0.0))
    for step in range(12):
        engine.step(float(step))
    engine.assert_consistent()
    memory = engine._scheduler.memory
    first = engine._scheduler.running[0]
    assert first.table is not None and first.table.length == 2
    assert count_extents(memory.tables.entries[first.table.row, :2]) == extents, (
        "the answer lies behind its prompt, or where a page was free"
    )
