"""A model on two ranks gives the tokens of one; a rank that is lost ends the engine with a word."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from compute_svc.engine.engine import Engine
from compute_svc.engine.start.loading import load_engine
from compute_svc.models.weights import SINGLE_FILE
from compute_svc.replica.engine_client import EngineClient, EngineFailed
from compute_svc.settings import Settings
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import EngineInfo, Load, PrefixStats, StepOutput
from tests.child_processes import children_running
from tests.fakes.checkpoints import save_checkpoint
from triserve.rpc.errors import ServiceError

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
PAGE_TOKENS = 8
# One key head of 8 numbers in 3 layers, float32, keys and values.
BYTES_PER_PAGE = 2 * 3 * PAGE_TOKENS * 8 * 4
NUM_PAGES = 12
NUM_TOKENS = 16


class Listener:
    """Keeps what an engine reports.

    Attributes:
        tokens: Of each request.
        left: Requests, as they leave.
        has_tokens: Set with the first token.
        load: Of the engine, as it told last.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[EngineInfo] = loop.create_future()
        self.failed: asyncio.Future[EngineFailed] = loop.create_future()
        self.tokens: dict[int, list[int]] = {}
        self.left: asyncio.Queue[int] = asyncio.Queue()
        self.has_tokens = asyncio.Event()
        self.load: Load | None = None

    def on_engine_loaded(self, info: EngineInfo, load: Load) -> None:
        """See `EngineListener`."""
        self.loaded.set_result(info)

    def on_engine_refused(self, number: int, error: ServiceError) -> None:
        """See `EngineListener`."""
        raise AssertionError(str(error))

    def on_engine_admitted(self, numbers: list[int]) -> None:
        """See `EngineListener`."""

    def on_engine_output(self, output: StepOutput, ended_at: float) -> None:
        """See `EngineListener`."""
        _add_tokens(output, self.tokens)
        self.load = output.load
        if self.tokens:
            self.has_tokens.set()
        for released in output.released:
            assert released.error is None or self.failed.done()
            self.left.put_nowait(released.number)

    def on_engine_unpinned(self, number: int, was_pinned: bool) -> None:
        """See `EngineListener`."""

    def on_engine_stats(self, number: int, stats: PrefixStats) -> None:
        """See `EngineListener`."""

    def on_engine_failed(self, error: EngineFailed) -> None:
        """See `EngineListener`."""
        self.failed.set_result(error)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder, "llama")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "protos")]))


@pytest.fixture
async def listener() -> Listener:
    return Listener()


@pytest.fixture
async def client(listener: Listener, model_folder: Path) -> AsyncIterator[EngineClient]:
    client = EngineClient(listener)
    await client.start(_settings(model_folder, ranks=2))
    async with asyncio.timeout(PATIENCE_S):
        yield client
    await client.stop()


def _settings(folder: Path, *, ranks: int, **changes: object) -> Settings:
    # Whole heads are twice as many as those of one of two ranks.
    sizes = {"page_size_tokens": PAGE_TOKENS, "kv_cache_bytes": (3 - ranks) * NUM_PAGES * BYTES_PER_PAGE}
    steps = {"step_budget_tokens": 16, "max_running_requests": 5}
    return Settings.model_validate({"model": folder, "threads": 1, "tensor_parallel": ranks, **sizes, **steps, **changes})


def _requests() -> list[Request]:
    """More than there are pages for, with prompts longer than a step, some of which begin alike."""
    random = np.random.default_rng(3)
    shared = random.integers(0, 97, 2 * PAGE_TOKENS)
    prompts = [np.concatenate((shared[: len(shared) * (number % 2)], random.integers(0, 97, 3 + 4 * number))) for number in range(6)]
    return [Request(number, "", prompt, np.empty(0, np.int64), NUM_TOKENS, 0.0) for number, prompt in enumerate(prompts)]


def _add_tokens(output: StepOutput, tokens: dict[int, list[int]]) -> None:
    if output.rows is not None:
        drawn = iter(output.rows.tokens.tolist())
        for number, count in zip(output.rows.numbers.tolist(), output.rows.counts.tolist(), strict=True):
            tokens.setdefault(number, []).extend(next(drawn) for _ in range(count))


def _answers(engine: Engine, requests: list[Request]) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    for request in requests:
        engine.submit(request)
    while (output := engine.step(0.0)) is not None:
        _add_tokens(output, tokens)
    return tokens


def _wait_until_gone(process: psutil.Process) -> None:
    # A child of a child that died stays a zombie where nobody reaps it.
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def _ranks() -> list[psutil.Process]:
    return children_running("compute_svc.parallel.processes.follower")


async def test_two_ranks_give_the_tokens_of_one_in_any_batch(client: EngineClient, listener: Listener, model_folder: Path) -> None:
    expected = _answers(load_engine(_settings(model_folder, ranks=1)), _requests())
    info = await listener.loaded
    assert (info.num_pages, info.kernels.split(", ")[-1]) == (NUM_PAGES, "2 ranks")
    # A step that decodes begins while prompts are read; then all come at once and push each other out.
    for request in _requests():
        client.submit(request)
    for _ in expected:
        await listener.left.get()
    assert listener.tokens == expected
    assert listener.load is not None
    assert listener.load.preemptions > 0
    assert listener.load.cached_tokens > 0


@pytest.mark.parametrize("computes", [False, True], ids=["idle", "computing"])
async def test_a_rank_that_is_killed_ends_the_engine_with_a_word(client: EngineClient, listener: Listener, computes: bool) -> None:
    await listener.loaded
    if computes:
        client.submit(Request(1, "", np.arange(9), np.empty(0, np.int64), 80, 0.0))
        await listener.has_tokens.wait()
    (rank,) = _ranks()
    rank.kill()
    async with asyncio.timeout(10):
        error = await listener.failed
    assert str(error) == "rank 1 was killed by SIGKILL"


async def test_ranks_end_with_the_engine(client: EngineClient, listener: Listener, model_folder: Path) -> None:
    await listener.loaded
    (rank,) = _ranks()
    engine = rank.parent()
    assert engine is not None
    engine.kill()
    async with asyncio.timeout(10):
        assert str(await listener.failed) == "the engine was killed by SIGKILL"
        await asyncio.to_thread(_wait_until_gone, rank)


async def test_what_another_rank_cannot_load_is_told_in_its_words(listener: Listener, model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / SINGLE_FILE)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][-1] = torch.nan
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    client = EngineClient(listener)
    await client.start(_settings(tmp_path, ranks=2))
    async with asyncio.timeout(PATIENCE_S):
        assert str(await listener.failed) == f"rank 1: tensor {name} holds numbers that are not finite in float32"
    await client.stop()


@pytest.mark.parametrize(
    ("ranks", "changes", "message"),
    [
        (4, {}, "COMPUTE_TENSOR_PARALLEL is 4, which does not divide the 6 query heads of LlamaForCausalLM"),
        (
            2,
            {"device": "cuda:63"},
            "COMPUTE_TENSOR_PARALLEL is 2, with COMPUTE_DEVICE=cuda:63 that takes the CUDA devices up to cuda:64, there are",
        ),
    ],
    ids=["heads", "devices"],
)
def test_ranks_that_cannot_be_are_refused_before_any_is_started(
    ranks: int, changes: dict[str, str], message: str, model_folder: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_engine(_settings(model_folder, ranks=1).model_copy(update={"tensor_parallel": ranks, **changes}))
