"""Before a replica is ready it computes the largest steps that there can be, and the pages get what these leave."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compute_svc.engine.start.device_memory import kept_bytes
from compute_svc.engine.start.largest_steps import LargestSteps, StepSizes, draw_widest, largest_batches
from compute_svc.engine.start.loading import load_engine
from compute_svc.kv.kv_format import KvFormat
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from compute_svc.scheduler.base import MAX_READ_TOKENS
from compute_svc.settings import Settings
from compute_svc.wire.request import GREEDY, HiddenStates, Request
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.device_memory import FakeDeviceMemory
from tests.fakes.tensor_memory import TensorMemory
from triserve.rpc.sampling import Sampling

WIDTH = 97
WIDEST = Sampling(top_p=0.9, typical_p=0.9, min_p=0.01, repetition_penalty=1.1, dry_multiplier=0.5, seed=1, top_logprobs=20)
FORMAT = KvFormat(torch.float32)
# A page of four in the checkpoint's 3 layers of 2 heads of 8 numbers, keys and values, float32; the store of a few has four.
PAGE_BYTES = 2 * 3 * 2 * 8 * 4 * 4
SIZES = [
    StepSizes(budget_tokens=300, max_requests=7, longest_tokens=512, max_positions=512, page_size_tokens=16),
    StepSizes(budget_tokens=8, max_requests=8, longest_tokens=100, max_positions=400, page_size_tokens=16),
    StepSizes(budget_tokens=600, max_requests=1, longest_tokens=33, max_positions=33, page_size_tokens=7),
    StepSizes(budget_tokens=1, max_requests=1, longest_tokens=2, max_positions=2, page_size_tokens=256),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint."""
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(path, "llama")
    (path / "tokenizer.json").write_text("{}")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> CausalLM:
    return load_model(folder, dtype=torch.float32, device=torch.device("cpu"))


def start(folder: Path, memory: FakeDeviceMemory | None, **settings: Any) -> Any:
    chosen = {"model": folder, "threads": 1, "page_size_tokens": 4, "max_running_requests": 4, "step_budget_tokens": 64, **settings}
    return load_engine(Settings.model_validate(chosen), memory)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_largest_steps_are_within_the_limits_and_reach_them(sizes: StepSizes) -> None:
    batches = list(largest_batches(sizes, WIDTH))
    long, short, decodes = batches
    assert long.num_requests == 1 and long.num_tokens == min(sizes.budget_tokens, sizes.longest_tokens)
    assert short.num_requests == decodes.num_decodes == sizes.max_requests
    for batch in batches:
        assert batch.num_tokens <= sizes.budget_tokens and set(batch.kv_lengths) == {sizes.longest_tokens}
        assert batch.page_table.shape == (batch.num_requests, sizes.max_pages)
        assert int(batch.positions.max()) + 1 == batch.position_limit == sizes.max_positions
        assert int(batch.logit_rows.max()) < batch.num_tokens and int(batch.token_ids.max()) < WIDTH
        # The last of every request, and as many more as are told of one by one.
        told = min(MAX_READ_TOKENS, batch.num_tokens - batch.num_decodes)
        assert len(batch.logit_rows) == batch.num_requests + told
        assert (0 if batch.hidden_rows is None else len(batch.hidden_rows)) == batch.num_tokens - batch.num_decodes


@pytest.mark.parametrize("sizes", SIZES)
def test_a_step_takes_what_the_largest_of_them_took(sizes: StepSizes, model: CausalLM) -> None:
    steps = LargestSteps(model, FORMAT, sizes, takes_graphs=True)
    store = 4 * sizes.page_size_tokens * FORMAT.bytes_per_token(3, 2, 8)
    memory = FakeDeviceMemory(100_000, 40_000 + store, [500, 9000, 700])
    figures = steps.measure(memory)
    assert memory.num_measured == 3
    assert figures == (100_000, 40_000, 9000 + kept_bytes(sizes.max_requests, WIDTH), 0)


@pytest.mark.parametrize(("rows", "width"), [(1, 2), (3, 97), (5, 3000)])
def test_rows_are_drawn_with_all_that_requests_can_ask_for(rows: int, width: int) -> None:
    logits = torch.randn(rows, width)
    before = logits.clone()
    draw_widest(logits)
    assert torch.equal(logits, before)


def test_pages_get_what_weights_and_steps_leave(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = kept_bytes(4, WIDTH)
    memory = FakeDeviceMemory(100_000, 20_000 + 4 * PAGE_BYTES, [10_000])
    with caplog.at_level(logging.INFO):
        engine = start(folder, memory)
    room = 90_000 - 20_000 - 10_000 - kept
    assert engine.config.num_pages == room // PAGE_BYTES and engine.kv_bytes_per_page == PAGE_BYTES
    assert f"{room} bytes for keys and values, of room for {room}: 0.9 (COMPUTE_DEVICE_MEMORY_SHARE) of 100000 bytes" in caplog.text


def test_what_is_set_is_held_against_the_room(folder: Path) -> None:
    memory = FakeDeviceMemory(100_000, 20_000 + 4 * PAGE_BYTES, [10_000])
    assert start(folder, memory, kv_cache_bytes=3 * PAGE_BYTES).config.num_pages == 3
    with pytest.raises(ValueError, match="COMPUTE_KV_CACHE_BYTES is 60000, the limit is the room on the device"):
        start(folder, memory, kv_cache_bytes=60_000)
    assert start(folder, memory, kv_cache_bytes=60_000, device_memory_share=1.0).config.num_pages == 60_000 // PAGE_BYTES


def test_a_device_too_small_for_a_step_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="the device has no room for keys and values"):
        start(folder, FakeDeviceMemory(100_000, 20_000, [80_000]))

    class Full(FakeDeviceMemory):
        def peak_bytes(self) -> int:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ValueError, match="the largest step does not fit beside the weights: lower COMPUTE_STEP_BUDGET_TOKENS"):
        start(folder, Full(100_000, 20_000, [1]))


def test_the_longest_request_is_that_of_the_window_where_others_are_dropped(folder: Path) -> None:
    memory = FakeDeviceMemory(1 << 30, 20_000, [10_000])
    engine = start(folder, memory, streaming_window_tokens=40, max_model_len_tokens=5000, page_size_tokens=16)
    assert engine.config.slides and engine.config.max_request_tokens == 5000


def test_a_cpu_without_a_setting_has_a_gibibyte(folder: Path) -> None:
    engine = load_engine(Settings(model=folder, threads=1))
    assert engine.config.num_pages == (1 << 30) // engine.kv_bytes_per_page


def test_no_step_of_an_engine_takes_more_than_was_measured(folder: Path, model: CausalLM) -> None:
    sizes = StepSizes(budget_tokens=96, max_requests=6, longest_tokens=512, max_positions=512, page_size_tokens=16)
    with TensorMemory(1 << 30) as memory:
        figures = LargestSteps(model, FORMAT, sizes, takes_graphs=False).measure(memory)
    engine = start(folder, None, page_size_tokens=16, max_running_requests=6, step_budget_tokens=96, kv_cache_bytes=1 << 22)
    random = np.random.default_rng(0)
    for number in range(20):
        length = int(random.integers(2, 200)) if number % 4 else 480
        sampling = (GREEDY, WIDEST, Sampling(top_p=0.9, seed=number, prompt_logprobs=20), Sampling(top_logprobs=20, seed=number))[
            number % 4
        ]
        hidden = (HiddenStates.NONE, HiddenStates.ALL, HiddenStates.MEAN)[number % 3]
        prompt = random.integers(0, WIDTH, length)
        engine.submit(Request(number, "", prompt, np.empty(0, np.int64), 12, 0.0, sampling=sampling, hidden_states=hidden))
    with TensorMemory(1 << 30) as memory:
        num_steps = 0
        while engine.step(0.0) is not None:
            num_steps += 1
    assert num_steps > 30
    assert 0 < memory.peak_bytes() <= figures.step_bytes
    # Measured for what it is for, not just large.
    assert memory.peak_bytes() > 0.3 * figures.step_bytes
