"""A model on two ranks, or in two stages of a pipeline, gives the tokens of one; a rank that is lost ends the engine with a word."""

from __future__ import annotations

import asyncio
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
from compute_svc.wire.request import HiddenStates, Request
from compute_svc.wire.step_output import EngineInfo, Load, PrefixStats, StepOutput
from tests.child_processes import children_running
from tests.fakes.engine_clients import running_engine
from triserve.rpc.errors import ServiceError

pytestmark = pytest.mark.usefixtures("import_path")

PATIENCE_S = 60
PAGE_TOKENS = 8
# One key head of 8 numbers in one layer, float32, keys and values.
BYTES_PER_HEAD = 2 * PAGE_TOKENS * 8 * 4
# Of both heads in 3 layers; of one of two ranks, which have a head each; and of the stage that has two layers.
BYTES_PER_PAGE = {"alone": 2 * 3 * BYTES_PER_HEAD, "tensor_parallel": 3 * BYTES_PER_HEAD, "pipeline_parallel": 2 * 2 * BYTES_PER_HEAD}
NUM_PAGES = 10
NUM_TOKENS = 16


class Listener:
    """Keeps what an engine reports.

    Attributes:
        tokens: Of each request.
        vectors: Hidden states of each request that wants some, as bytes.
        left: Requests, as they leave.
        has_tokens: Set with every token.
        load: Of the engine, as it told last.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[EngineInfo] = loop.create_future()
        self.failed: asyncio.Future[EngineFailed] = loop.create_future()
        self.tokens: dict[int, list[int]] = {}
        self.vectors: dict[int, bytes] = {}
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
        _add(output, self.tokens, self.vectors)
        self.load = output.load
        if output.rows is not None:
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


@pytest.fixture
async def listener() -> Listener:
    return Listener()


@pytest.fixture
async def client(listener: Listener, model_folder: Path, kind: str) -> AsyncIterator[EngineClient]:
    async with running_engine(listener, _settings(model_folder, kind)) as client:
        yield client


def _settings(folder: Path, kind: str, **changes: object) -> Settings:
    """Of two ranks of a kind, or of one alone; all have as many pages."""
    sizes = {"page_size_tokens": PAGE_TOKENS, "kv_cache_bytes": NUM_PAGES * BYTES_PER_PAGE[kind]}
    steps = {"step_budget_tokens": 16, "max_running_requests": 5}
    ranks = {} if kind == "alone" else {kind: 2}
    return Settings.model_validate({"model": folder, "threads": 1, **ranks, **sizes, **steps, **changes})


def _requests() -> list[Request]:
    """More than there are pages for, with prompts longer than a step, some of which begin alike; two want vectors."""
    random = np.random.default_rng(3)
    shared = random.integers(0, 97, 2 * PAGE_TOKENS)
    prompts = [np.concatenate((shared[: len(shared) * (number % 2)], random.integers(0, 97, 3 + 4 * number))) for number in range(6)]
    wanted = {2: HiddenStates.ALL, 4: HiddenStates.LAST}
    return [
        Request(number, "", prompt, np.empty(0, np.int64), NUM_TOKENS, 0.0, hidden_states=wanted.get(number, HiddenStates.NONE))
        for number, prompt in enumerate(prompts)
    ]


def _add(output: StepOutput, tokens: dict[int, list[int]], vectors: dict[int, bytes]) -> None:
    for one in output.hidden:
        vectors[one.number] = vectors.get(one.number, b"") + one.vectors
    if output.rows is not None:
        drawn = iter(output.rows.tokens.tolist())
        for number, count in zip(output.rows.numbers.tolist(), output.rows.counts.tolist(), strict=True):
            tokens.setdefault(number, []).extend(next(drawn) for _ in range(count))


def _answers(engine: Engine, requests: list[Request]) -> tuple[dict[int, list[int]], dict[int, bytes]]:
    tokens: dict[int, list[int]] = {}
    vectors: dict[int, bytes] = {}
    for request in requests:
        engine.submit(request)
    while (output := engine.step(0.0)) is not None:
        _add(output, tokens, vectors)
    return tokens, vectors


def _wait_until_gone(process: psutil.Process) -> None:
    # A child of a child that died stays a zombie where nobody reaps it.
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def _ranks() -> list[psutil.Process]:
    return children_running("compute_svc.parallel.processes.follower")


@pytest.mark.parametrize("kind", ["tensor_parallel", "pipeline_parallel"])
async def test_two_ranks_give_the_tokens_of_one_in_any_batch_and_end_with_a_word_when_one_is_killed_at_work(
    client: EngineClient, listener: Listener, kind: str, model_folder: Path
) -> None:
    expected, vectors = _answers(load_engine(_settings(model_folder, "alone")), _requests())
    info = await listener.loaded
    assert (info.num_pages, info.kernels.split(", ")[-1] == "2 ranks") == (NUM_PAGES, kind == "tensor_parallel")
    # A step that decodes begins while prompts are read; then all come at once and push each other out.
    for request in _requests():
        client.submit(request)
    for _ in expected:
        await listener.left.get()
    assert listener.tokens == expected
    assert listener.vectors.keys() == vectors.keys() == {2, 4}
    if kind == "pipeline_parallel":
        # Sums over ranks are in another order, stages sum as one does.
        assert listener.vectors == vectors
    assert listener.load is not None
    assert listener.load.preemptions > 0
    assert listener.load.cached_tokens > 0

    listener.has_tokens.clear()
    client.submit(Request(len(expected), "", np.arange(9), np.empty(0, np.int64), 60, 0.0))
    await listener.has_tokens.wait()
    await _killed(listener)


@pytest.mark.parametrize("kind", ["tensor_parallel"])
async def test_a_rank_that_is_killed_while_it_waits_ends_the_engine_with_a_word(client: EngineClient, listener: Listener) -> None:
    await listener.loaded
    await _killed(listener)


async def _killed(listener: Listener) -> None:
    """Kills the other rank; the engine says so."""
    (rank,) = _ranks()
    rank.kill()
    assert str(await listener.failed) == "rank 1 was killed by SIGKILL"


@pytest.mark.parametrize("kind", ["tensor_parallel"])
async def test_ranks_end_with_the_engine(client: EngineClient, listener: Listener, model_folder: Path) -> None:
    await listener.loaded
    (rank,) = _ranks()
    engine = rank.parent()
    assert engine is not None
    engine.kill()
    assert str(await listener.failed) == "the engine was killed by SIGKILL"
    await asyncio.to_thread(_wait_until_gone, rank)


async def test_what_another_rank_cannot_load_is_told_in_its_words(listener: Listener, model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / SINGLE_FILE)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][-1] = torch.nan
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    client = EngineClient(listener)
    await client.start(_settings(tmp_path, "tensor_parallel"))
    async with asyncio.timeout(PATIENCE_S):
        assert str(await listener.failed) == f"rank 1: tensor {name} holds numbers that are not finite in float32"
    await client.stop()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor_parallel": 4}, "COMPUTE_TENSOR_PARALLEL is 4, which does not divide the 6 query heads of LlamaForCausalLM"),
        ({"pipeline_parallel": 4}, "COMPUTE_PIPELINE_PARALLEL is 4, the limit is the number of layers of LlamaForCausalLM, 3"),
        (
            {"tensor_parallel": 2, "device": "cuda:63"},
            "COMPUTE_TENSOR_PARALLEL is 2, with COMPUTE_DEVICE=cuda:63 that takes the CUDA devices up to cuda:64, there are",
        ),
        (
            {"tensor_parallel": 2, "pipeline_parallel": 3, "device": "cuda:60"},
            "COMPUTE_TENSOR_PARALLEL is 2 and COMPUTE_PIPELINE_PARALLEL is 3, with COMPUTE_DEVICE=cuda:60 that takes the CUDA devices up to cuda:65",
        ),
    ],
    ids=["heads", "layers", "devices", "devices-of-both"],
)
def test_ranks_that_cannot_be_are_refused_before_any_is_started(changes: dict[str, object], message: str, model_folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_engine(_settings(model_folder, "alone").model_copy(update=changes))
