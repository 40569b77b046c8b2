"""A streaming window through the engine: answers far longer than the model's context and than all KV there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compute_svc.engine.engine import Engine
from compute_svc.engine.start.loading import load_engine
from compute_svc.kernels.attention.kv_chunks import CHUNK_TOKENS
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.settings import Settings
from compute_svc.wire.request import Request
from tests.fakes.checkpoints import save_checkpoint

BYTES_PER_TOKEN = 2 * 3 * 2 * 8 * 4
LENGTH = 900


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model made for 512 tokens, under a window of 20."""
    save_checkpoint(tmp_path, "llama")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("COMPUTE_MODEL", str(tmp_path))
    monkeypatch.setenv("COMPUTE_STREAMING_WINDOW_TOKENS", "20")
    monkeypatch.setenv("COMPUTE_MAX_MODEL_LEN_TOKENS", "2000")
    monkeypatch.setenv("COMPUTE_STEP_BUDGET_TOKENS", "48")
    monkeypatch.setenv("COMPUTE_MAX_RUNNING_REQUESTS", "4")
    return tmp_path


def _answers(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        engine.submit(Request(number, "", np.array(prompt), np.empty(0, np.int64), LENGTH, 0.0))
    while (output := engine.step(0.0)) is not None:
        if output.rows is not None:
            for number, token in zip(output.rows.numbers, output.rows.tokens, strict=True):
                assert token is not None
                answers[number].append(token)
    engine.assert_consistent()
    assert engine.load.used_pages == 0
    return answers


@pytest.mark.slow
def test_what_is_dropped_changes_no_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 97, length).tolist() for length in (3, 150, 700)]
    monkeypatch.setenv("COMPUTE_KV_CACHE_BYTES", str(48 * 16 * BYTES_PER_TOKEN))
    few = load_engine(Settings())
    answers = _answers(few, prompts)
    assert few.load.preemptions > 0
    # Pages that do not end where chunks do: everything is kept.
    monkeypatch.setenv("COMPUTE_PAGE_SIZE_TOKENS", "24")
    monkeypatch.setenv("COMPUTE_KV_CACHE_BYTES", str(300 * 24 * BYTES_PER_TOKEN))
    assert _answers(load_engine(Settings()), prompts) == answers
    assert [len(answer) for answer in answers] == [LENGTH] * 3


def test_a_window_lifts_the_limits_of_context_and_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_KV_CACHE_BYTES", str(48 * 16 * BYTES_PER_TOKEN))
    assert load_engine(Settings()).config.max_request_tokens == 2000
    monkeypatch.setenv("COMPUTE_MAX_MODEL_LEN_TOKENS", str(1 << 20))
    with pytest.raises(ValueError, match="the limit is that of a streaming window, 524288"):
        load_engine(Settings())


def test_a_window_wider_than_the_models_context_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_STREAMING_WINDOW_TOKENS", "509")
    with pytest.raises(ValueError, match="COMPUTE_STREAMING_WINDOW_TOKENS is 509, the limit is 508"):
        load_engine(Settings())


def test_chunks_are_dropped_as_attention_reads_them() -> None:
    assert SchedulerConfig.__dataclass_fields__["chunk_tokens"].default == CHUNK_TOKENS
