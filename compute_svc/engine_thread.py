"""The one thread that does all torch work of the process, from loading the model to the last step.

Two threads that both enter OpenMP make every step take twice as long, so nothing outside this thread computes a tensor. It never
waits for the network: commands come by a queue, results go to the event loop once per step.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVarTuple, Unpack

import torch

from compute_svc.engine import Engine, StepOutput
from compute_svc.request import Request
from triserve.rpc.errors import ServiceError

_STOP_TIMEOUT_S = 5.0

Command = Callable[[Engine], object]
Arguments = TypeVarTuple("Arguments")


class EngineListener(Protocol):
    """Hears from the thread; called on the event loop."""

    def on_engine_loaded(self, engine: Engine) -> None:
        """The model is loaded. The engine may be read for its configuration and is otherwise the thread's alone."""

    def on_engine_refused(self, number: int, error: ServiceError) -> None:
        """A request was not taken into the queue."""

    def on_engine_admitted(self, numbers: list[int]) -> None:
        """Requests leave the queue in the step that begins now."""

    def on_engine_output(self, output: StepOutput, ended_at: float) -> None:
        """A step has ended, at that time on the monotonic clock, or something has happened between steps."""

    def on_engine_failed(self, error: BaseException) -> None:
        """The thread has ended; nothing follows."""


class EngineThread:
    """Runs an engine. All methods may be called from the event loop and return at once.

    Args:
        build: Loads the model and makes the engine; called in the thread.
        listener: Who hears what happens.
        threads: Threads of torch's CPU backend.
    """

    def __init__(self, build: Callable[[], Engine], listener: EngineListener, *, threads: int) -> None:
        self._build = build
        self._listener = listener
        self._threads = threads
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy_since: float | None = None

    @property
    def busy_since(self) -> float | None:
        """When the step under way began, on the monotonic clock; None between steps that have nothing to compute."""
        return self._busy_since

    def start(self) -> None:
        """Begins to load."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after the step under way; one that loads or computes for too long is left to the end of the process."""
        self._commands.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT_S)

    def submit(self, request: Request) -> None:
        """Puts a request in the engine's queue."""
        self._commands.put(lambda engine: self._submit(engine, request))

    def release(self, number: int) -> None:
        """Ends a request; `on_engine_output` tells when its pages are free, unless it had left before."""
        self._commands.put(lambda engine: engine.release(number))

    def verdicts(self, numbers: Sequence[int], positions: Sequence[int], tokens: Sequence[int]) -> None:
        """Tokens drawn elsewhere."""

        def take(engine: Engine) -> None:
            for number, position, token in zip(numbers, positions, tokens, strict=True):
                engine.verdict(number, position, token)

        self._commands.put(take)

    def pause(self, numbers: Sequence[int], *, paused: bool) -> None:
        """Keeps requests out of the next steps, or lets them in again."""
        self._commands.put(lambda engine: engine.pause(numbers, paused=paused))

    def _run(self) -> None:
        try:
            # OpenMP keeps the number of threads by thread: it is set where the work is done.
            torch.set_num_threads(self._threads)
            engine = self._build()
            self._tell(self._listener.on_engine_loaded, engine)
            self._serve(engine)
        except BaseException as error:  # noqa: BLE001 - whatever ends the thread ends the process, with this as the reason
            self._busy_since = None
            self._tell(self._listener.on_engine_failed, error)

    def _serve(self, engine: Engine) -> None:
        idle = True
        while self._take_commands(engine, wait=idle):
            begun_at = time.monotonic()
            plan = engine.plan(begun_at)
            idle = plan.is_empty
            self._busy_since = None if idle else begun_at
            if plan.admitted:
                self._tell(self._listener.on_engine_admitted, [state.request.number for state in plan.admitted])
            output = engine.run(plan)
            if output is not None:
                self._tell(self._listener.on_engine_output, output, time.monotonic())

    def _take_commands(self, engine: Engine, *, wait: bool) -> bool:
        """Does what has been asked for. Returns False when that is to stop."""
        try:
            command = self._commands.get(timeout=_seconds_until(engine.next_deadline)) if wait else self._commands.get_nowait()
            while command is not None:
                command(engine)
                command = self._commands.get_nowait()
        except Empty:
            return True
        return False

    def _submit(self, engine: Engine, request: Request) -> None:
        try:
            engine.submit(request)
        except ServiceError as error:
            self._tell(self._listener.on_engine_refused, request.number, error)

    def _tell(self, callback: Callable[[Unpack[Arguments]], None], *arguments: *Arguments) -> None:
        assert self._loop is not None, "the thread runs only after `start`"
        self._loop.call_soon_threadsafe(callback, *arguments)


def _seconds_until(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
