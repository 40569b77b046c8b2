"""The engine, as the event loop sees it: a process of its own at the other end of a stream."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from compute_svc.replica.sampler_ledger import Mask, Verdict
from compute_svc.settings import Settings
from compute_svc.wire import engine_wire_pb2 as wire
from compute_svc.wire.codec import MessageCutter, decode_output, decode_stats, encode_request, encode_tokens, pack
from compute_svc.wire.request import Request, Tokens
from compute_svc.wire.step_output import EngineInfo, Load, PrefixStats, StepOutput
from triserve.rpc.errors import ServiceError, from_proto

_STOP_TIMEOUT_S = 5.0
# Fields of /proc/PID/stat after the name.
_USER_TICKS, _SYSTEM_TICKS = 11, 12


class EngineFailed(Exception):
    """The engine could not be loaded, or has failed; nothing more can be computed."""


class EngineLost(EngineFailed):
    """The engine ended without a word, killed or crashed, or hangs: what it was asked for is not to blame."""


class EngineListener(Protocol):
    """Hears from the engine; called on the event loop."""

    def on_engine_loaded(self, info: EngineInfo, load: Load) -> None:
        """The model is loaded."""

    def on_engine_refused(self, number: int, error: ServiceError) -> None:
        """A request was not taken into the queue."""

    def on_engine_admitted(self, numbers: list[int]) -> None:
        """Requests leave the queue in the step that begins now."""

    def on_engine_output(self, output: StepOutput, ended_at: float) -> None:
        """A step has ended, at that time on the monotonic clock, or something has happened between steps."""

    def on_engine_unpinned(self, number: int, was_pinned: bool) -> None:
        """Answers `unpin`."""

    def on_engine_stats(self, number: int, stats: PrefixStats) -> None:
        """Answers `prefix_stats`."""

    def on_engine_failed(self, error: EngineFailed) -> None:
        """The engine has ended; nothing follows."""


class EngineHost(Protocol):
    """What the engine runs in."""

    async def wait(self) -> str:
        """Returns when it has ended: how, in words that follow "the engine"."""

    def kill(self) -> None:
        """Ends it at once."""

    def used_s(self) -> float | None:
        """Processor time it has used since its start; None where the system does not say."""


Launch = Callable[[socket.socket, Mapping[str, str]], EngineHost]
"""Starts the engine with its end of the stream, in an environment."""


class _Process:
    """The engine's process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    async def wait(self) -> str:
        """See `EngineHost`."""
        status = await asyncio.to_thread(self._process.wait)
        return f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"

    def kill(self) -> None:
        """See `EngineHost`."""
        self._process.kill()

    def used_s(self) -> float | None:
        """See `EngineHost`. Of all its threads."""
        try:
            # Linux alone has the file. The name before the last bracket may hold anything.
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / os.sysconf("SC_CLK_TCK")


def launch_process(connection: socket.socket, environment: Mapping[str, str]) -> EngineHost:
    """Starts the engine's process with its end of the stream, in this environment."""
    safe_path = ("-P",) if sys.flags.safe_path else ()
    command = (sys.executable, *safe_path, "-m", "compute_svc.engine", str(connection.fileno()))
    # Not by the event loop, which forks in a way that wakes gRPC's fork handlers.
    return _Process(subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(connection.fileno(),), env=environment))


class EngineClient(asyncio.Protocol):
    """Gives commands and passes on reports. All methods but `start` and `stop` return at once.

    Args:
        listener: Who hears what happens.
        launch: Starts the engine.
    """

    def __init__(self, listener: EngineListener, launch: Launch = launch_process) -> None:
        self._listener = listener
        self._launch = launch
        self._cutter = MessageCutter()
        self._host: EngineHost | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._end: asyncio.Task[None] | None = None
        self._has_ended = False
        self._num_pings = 0
        self._pinged_at: float | None = None

    @property
    def silent_s(self) -> float:
        """For how long a `ping` has been unanswered, or the model has been loading; 0 if none is."""
        return 0.0 if self._pinged_at is None else time.monotonic() - self._pinged_at

    @property
    def used_s(self) -> float | None:
        """Processor time the engine has used; None if that is not known."""
        return None if self._host is None else self._host.used_s()

    async def start(self, settings: Settings) -> None:
        """Starts the engine, which begins to load."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._host = self._launch(theirs, settings.engine_environment())
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        # That it has loaded is its first answer.
        self._pinged_at = time.monotonic()
        self._give(wire.Command(load=wire.Load(settings=settings.model_dump_json())))

    async def stop(self) -> None:
        """Ends the engine after the step under way, or at once if that takes too long; nobody hears of it."""
        self._has_ended = True
        if self._transport is not None:
            self._transport.close()
        if self._host is not None:
            try:
                await asyncio.wait_for(self._host.wait(), _STOP_TIMEOUT_S)
            except TimeoutError:
                self._host.kill()
                await self._host.wait()

    def give_up(self, reason: str) -> None:
        """Kills an engine that hangs; `on_engine_failed` follows at once.

        Args:
            reason: What is wrong with it, in words that follow "the engine".
        """
        if self._host is not None and not self._has_ended:
            self._host.kill()
            self._fail(EngineLost(f"the engine {reason} and was killed"))

    def submit(self, request: Request) -> None:
        """Puts a request in the engine's queue."""
        self._give(wire.Command(submit=encode_request(request)))

    def release(self, number: int) -> None:
        """Ends a request; `on_engine_output` tells when its pages are free, unless it had left before."""
        self._give(wire.Command(release=number))

    def verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Tokens drawn elsewhere."""
        columns = wire.Verdicts(
            request=[verdict.number for verdict in verdicts],
            position=[verdict.position for verdict in verdicts],
            num_tokens=[len(verdict.tokens) for verdict in verdicts],
            token=[token for verdict in verdicts for token in verdict.tokens],
        )
        self._give(wire.Command(verdicts=columns))

    def masks(self, masks: Sequence[Mask]) -> None:
        """What can be drawn next of requests that have a grammar."""
        self._give(wire.Command(masks=wire.Masks(masks=[wire.Mask(**mask._asdict()) for mask in masks])))

    def pause(self, numbers: Sequence[int], *, paused: bool) -> None:
        """Keeps requests out of the next steps, or lets them in again."""
        self._give(wire.Command(pause=wire.Pause(request=numbers, paused=paused)))

    def unpin(self, number: int, tenant: str, tokens: Tokens) -> None:
        """Lets a pinned prefix go; `on_engine_unpinned` follows."""
        self._give(wire.Command(unpin=wire.Unpin(number=number, tenant=tenant, tokens=encode_tokens(tokens))))

    def prefix_stats(self, number: int) -> None:
        """Asks what the prefix cache holds; `on_engine_stats` follows."""
        self._give(wire.Command(stats=number))

    def watch(self, wanted: bool) -> None:
        """Whether outputs are to tell how the prefix cache changes; the first one tells what it holds."""
        self._give(wire.Command(watch=wanted))

    def ping(self) -> None:
        """Asks for a sign of life, unless one is awaited."""
        if self._pinged_at is None:
            self._num_pings += 1
            self._pinged_at = time.monotonic()
            self._give(wire.Command(ping=self._num_pings))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The stream is there."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Passes on what the engine reports."""
        for content in self._cutter.feed(data):
            self._take(wire.Report.FromString(content))

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine has ended; how, its host knows."""
        if not self._has_ended:
            self._end = asyncio.ensure_future(self._tell_end())

    async def _tell_end(self) -> None:
        assert self._host is not None, "a stream belongs to a host"
        how = await self._host.wait()
        if not self._has_ended:
            self._fail(EngineLost(f"the engine {how}"))

    def _fail(self, error: EngineFailed) -> None:
        self._has_ended = True
        self._listener.on_engine_failed(error)

    def _give(self, command: wire.Command) -> None:
        if self._transport is not None and not self._has_ended:
            self._transport.write(pack(command))

    def _take(self, report: wire.Report) -> None:
        kind = report.WhichOneof("kind")
        if self._has_ended:
            return
        if kind == "output":
            self._listener.on_engine_output(decode_output(report.output), report.output.ended_at)
        elif kind == "admitted":
            self._listener.on_engine_admitted(list(report.admitted.request))
        elif kind == "refused":
            self._listener.on_engine_refused(report.refused.request, from_proto(report.refused.error))
        elif kind == "pong":
            self._pinged_at = None
        elif kind == "unpinned":
            self._listener.on_engine_unpinned(report.unpinned.number, report.unpinned.was_pinned)
        elif kind == "stats":
            self._listener.on_engine_stats(report.stats.number, decode_stats(report.stats))
        elif kind == "loaded":
            self._pinged_at = None
            loaded = report.loaded
            info = EngineInfo(*(getattr(loaded, name) for name in EngineInfo._fields))
            self._listener.on_engine_loaded(info, Load(*loaded.load))
        elif kind == "failed":
            # The engine waits for this before it ends.
            assert self._transport is not None, "what has reported is connected"
            self._transport.close()
            self._fail(EngineFailed(report.failed))
        else:
            raise AssertionError(f"unknown report {kind}")
