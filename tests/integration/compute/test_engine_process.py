"""The engine's process: it computes for its parent, says how it failed, and never outlives its parent."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import pytest_asyncio

from compute_svc.replica.engine_client import EngineClient, EngineFailed, EngineLost
from compute_svc.settings import Settings
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import EngineInfo, KvChanges, Load, Pinned, PrefixStats, StepOutput
from tests.child_processes import children_running
from tests.fakes.checkpoints import edit_config
from tests.fakes.engine_clients import running_engine
from triserve.rpc.errors import ServiceError

pytestmark = pytest.mark.usefixtures("import_path")
on_the_engines_loop = pytest.mark.asyncio(loop_scope="module")

PATIENCE_S = 60


class Listener:
    """Keeps what an engine reports."""

    def __init__(self) -> None:
        self.loaded: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self.failed: asyncio.Future[EngineFailed] = asyncio.get_running_loop().create_future()
        self.forget()

    def forget(self) -> None:
        """All but that it has loaded, and whether it has failed."""
        loop = self.loaded.get_loop()
        self.released: asyncio.Future[list[int]] = loop.create_future()
        self.unpinned: asyncio.Future[bool] = loop.create_future()
        self.stats: asyncio.Future[PrefixStats] = loop.create_future()
        self.pinned: asyncio.Future[list[Pinned]] = loop.create_future()
        self.kv_changes: list[KvChanges] = []
        self.admitted: list[int] = []
        self.tokens: list[int | None] = []
        self.refused: dict[int, ServiceError] = {}

    def on_engine_loaded(self, info: EngineInfo, load: Load) -> None:
        """See `EngineListener`."""
        assert load.free_pages == info.num_pages
        self.loaded.set_result(info)

    def on_engine_refused(self, number: int, error: ServiceError) -> None:
        """See `EngineListener`."""
        self.refused[number] = error

    def on_engine_admitted(self, numbers: list[int]) -> None:
        """See `EngineListener`."""
        self.admitted += numbers

    def on_engine_output(self, output: StepOutput, ended_at: float) -> None:
        """See `EngineListener`."""
        if output.rows is not None:
            self.tokens += output.rows.tokens.tolist()
        if output.kv_changes is not None:
            self.kv_changes.append(output.kv_changes)
        if output.pinned:
            self.pinned.set_result(output.pinned)
        if output.released:
            self.released.set_result([item.number for item in output.released])

    def on_engine_unpinned(self, number: int, was_pinned: bool) -> None:
        """See `EngineListener`."""
        self.unpinned.set_result(was_pinned)

    def on_engine_stats(self, number: int, stats: PrefixStats) -> None:
        """See `EngineListener`."""
        self.stats.set_result(stats)

    def on_engine_failed(self, error: EngineFailed) -> None:
        """See `EngineListener`."""
        self.failed.set_result(error)


class SharedEngine(NamedTuple):
    """An engine that is running."""

    client: EngineClient
    listener: Listener
    process: psutil.Process


@pytest_asyncio.fixture(loop_scope="module")
async def listener() -> Listener:
    return Listener()


@pytest_asyncio.fixture(loop_scope="module")
async def client(listener: Listener, model_folder: Path) -> AsyncIterator[EngineClient]:
    async with running_engine(listener, _settings(model_folder)) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lasting_engine(model_folder: Path) -> AsyncIterator[SharedEngine]:
    listener = Listener()
    client = EngineClient(listener)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        await client.start(_settings(model_folder))
    process = _started_engine()
    await asyncio.wait_for(listener.loaded, PATIENCE_S)
    yield SharedEngine(client, listener, process)
    await client.stop()


@pytest.fixture
def engine(lasting_engine: SharedEngine) -> Iterator[SharedEngine]:
    """One engine for all tests that leave it as they found it."""
    lasting_engine.listener.forget()
    yield lasting_engine
    assert not lasting_engine.listener.failed.done()


def _settings(folder: Path) -> Settings:
    return Settings.model_validate({"model": folder, "threads": 1, "kv_cache_bytes": 1 << 22, "openmp_spins": 77})


def _request(number: int, prompt: list[int], max_tokens: int) -> Request:
    return Request(number, "", np.array(prompt, dtype=np.int64), np.empty(0, dtype=np.int64), max_tokens, 0.0)


def _started_engine() -> psutil.Process:
    """That which was started last."""
    return max(children_running("compute_svc.engine", directly=True), key=psutil.Process.create_time)


@on_the_engines_loop
async def test_a_request_is_computed_and_one_that_cannot_fit_is_refused(engine: SharedEngine) -> None:
    client, listener, _ = engine
    info = await listener.loaded
    client.submit(_request(1, [5] * (info.max_request_tokens + 1), 4))
    client.submit(_request(2, [5, 6, 7], 4))
    assert await listener.released == [2]
    assert listener.admitted == [2]
    assert len(listener.tokens) == 4
    assert list(listener.refused) == [1]


@on_the_engines_loop
async def test_the_engine_starts_with_how_its_threads_wait(engine: SharedEngine) -> None:
    assert engine.process.environ()["GOMP_SPINCOUNT"] == "77"


@on_the_engines_loop
async def test_a_prefix_is_pinned_told_of_and_let_go(engine: SharedEngine) -> None:
    client, listener, _ = engine
    page = (await listener.loaded).page_size_tokens
    tokens = np.arange(2 * page) % 7
    client.watch(True)
    client.submit(dataclasses.replace(_request(1, tokens.tolist(), 1), pins=True))
    assert await listener.pinned == [Pinned(1, 2 * page, 2 * page)]
    client.prefix_stats(2)
    stats = await listener.stats
    assert ([pin[:2] for pin in stats.pins], stats.pinned_pages) == ([("", 2 * page)], 2)
    assert [changes.is_reset for changes in listener.kv_changes] in ([True], [True, False]), "one before or after the prefix was computed"
    assert listener.kv_changes[-1].stored[-1] == stats.pins[0][2]
    client.unpin(3, "", tokens)
    assert await listener.unpinned


@on_the_engines_loop
async def test_a_ping_is_answered_between_steps(engine: SharedEngine) -> None:
    client, listener, _ = engine
    await listener.loaded
    client.ping()
    assert client.silent_s > 0
    client.submit(_request(1, [5, 6, 7], 4))
    await listener.released
    assert client.silent_s == 0


@on_the_engines_loop
async def test_an_engine_that_is_killed_is_reported_lost(client: EngineClient, listener: Listener) -> None:
    await listener.loaded
    _started_engine().kill()
    failure = await listener.failed
    assert isinstance(failure, EngineLost) and str(failure) == "the engine was killed by SIGKILL"
    # Nothing hangs or raises after that.
    client.submit(_request(1, [5], 1))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the processor time of another process")
@on_the_engines_loop
async def test_an_engine_that_is_frozen_uses_no_processor_and_is_given_up_without_waiting_for_it(
    client: EngineClient, listener: Listener
) -> None:
    await listener.loaded
    used_s = client.used_s
    assert used_s is not None and used_s > 0
    process = _started_engine()
    process.suspend()
    client.ping()
    assert client.silent_s > 0
    client.give_up("hangs")
    failure = await listener.failed
    assert isinstance(failure, EngineLost) and str(failure) == "the engine hangs and was killed"
    await client.stop()
    assert not process.is_running()


@on_the_engines_loop
async def test_signals_to_stop_are_left_to_the_parent(engine: SharedEngine) -> None:
    client, listener, process = engine
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    client.submit(_request(1, [5, 6, 7], 4))
    assert await listener.released == [1]


@on_the_engines_loop
async def test_a_checkpoint_that_cannot_be_loaded_is_reported_by_its_reason(listener: Listener, model_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    edit_config(tmp_path, architectures=["MambaForCausalLM"])
    client = EngineClient(listener)
    await client.start(_settings(tmp_path))
    failure = await asyncio.wait_for(listener.failed, PATIENCE_S)
    assert "MambaForCausalLM" in str(failure) and not isinstance(failure, EngineLost)
    await client.stop()


@on_the_engines_loop
async def test_an_engine_that_loads_owes_its_first_answer_and_stopping_it_leaves_no_process_and_tells_nobody(
    listener: Listener, model_folder: Path
) -> None:
    client = EngineClient(listener)
    await client.start(_settings(model_folder))
    process = _started_engine()
    assert client.silent_s > 0
    await asyncio.wait_for(listener.loaded, PATIENCE_S)
    assert client.silent_s == 0
    await client.stop()
    assert not process.is_running()
    assert not listener.failed.done()


def test_an_engine_dies_with_its_parent(model_folder: Path) -> None:
    parent = f"""
import asyncio, os, signal, sys
from compute_svc.replica.engine_client import EngineClient
from compute_svc.settings import Settings

class Listener:
    def on_engine_loaded(self, info, load):
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    client = EngineClient(Listener())
    await client.start(Settings.model_validate({{"model": {str(model_folder)!r}, "threads": 1, "kv_cache_bytes": 1 << 22}}))
    await asyncio.sleep({PATIENCE_S})

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        # The engine holds the other end of this pipe too: its end is the engine's.
        process.stderr.read()
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
