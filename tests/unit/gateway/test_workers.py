"""A worker process is killed when it falls silent, and never while it is starting; what several tell is told as one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway import workers
from gateway.worker_metrics import WorkersCollector
from gateway.workers import Worker


class Process:
    """Can be killed."""

    def __init__(self) -> None:
        self.killed = asyncio.Event()

    def kill(self) -> None:
        self.killed.set()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_POLL_S", 0.0)


def asked(monkeypatch: pytest.MonkeyPatch, answers: Iterator[bool]) -> tuple[Worker, asyncio.Event]:
    """A worker that answers as the test says, and an event for when it has nothing more to say."""
    worker, over = Worker(0, 1, {}), asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask(path: str) -> tuple[int, bytes]:
        answer = next(answers, None)
        if answer is None:
            loop.call_soon_threadsafe(over.set)
        if not answer:
            raise ConnectionRefusedError
        return 200, b""

    monkeypatch.setattr(worker, "ask", ask)
    return worker, over


async def test_one_that_is_starting_is_left_alone_however_long_that_takes(no_pause: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # One that was started in place of another, which had answered.
    worker, over = asked(monkeypatch, iter([False] * 50))
    worker._was_alive = True
    process: Any = Process()
    watching = asyncio.create_task(worker._watch(process))
    await over.wait()
    assert not process.killed.is_set() and not worker.is_ready
    watching.cancel()


async def test_one_that_has_answered_and_falls_silent_is_killed(no_pause: None, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, _ = asked(monkeypatch, iter([True, True]))
    process: Any = Process()
    await worker._watch(process)
    assert process.killed.is_set() and not worker.is_ready


async def test_a_moment_of_silence_is_none(no_pause: None, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, over = asked(monkeypatch, iter([True, True, False, True, True] * 20))
    process: Any = Process()
    watching = asyncio.create_task(worker._watch(process))
    await over.wait()
    assert not process.killed.is_set()
    watching.cancel()


class Told:
    """A worker that tells something; None = it is gone."""

    def __init__(self, number: int, text: str | None, *, is_ready: bool) -> None:
        self.number = number
        self.is_ready = is_ready
        self._text = text

    def ask(self, path: str) -> tuple[int, bytes]:
        if self._text is None:
            raise ConnectionRefusedError
        return 200, self._text.encode()


def test_what_workers_tell_is_one_family_for_each_name_and_those_that_are_gone_are_left_out() -> None:
    text = '# HELP requests_total Requests\n# TYPE requests_total counter\nrequests_total{{route="chat"}} {}\n'
    told = [Told(0, text.format("3.0"), is_ready=True), Told(1, text.format("4.0"), is_ready=True), Told(2, None, is_ready=False)]
    registry = CollectorRegistry()
    registry.register(WorkersCollector(told))
    lines = generate_latest(registry).decode().splitlines()
    assert lines.count("# TYPE requests_total counter") == 1
    assert [line for line in lines if line.startswith("requests_total{")] == [
        'requests_total{route="chat",worker="0"} 3.0',
        'requests_total{route="chat",worker="1"} 4.0',
    ]
    assert [line[-3:] for line in lines if line.startswith("triserve_gateway_worker_ready{")] == ["1.0", "1.0", "0.0"]
