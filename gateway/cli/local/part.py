"""One part of the pipeline as a process: started, watched, started again when it dies or hangs, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.cli.console import Console
from gateway.cli.local.hang_watch import Answers, HangLimits, until_hung
from gateway.cli.local.log_lines import LineCutter

_LAUNCHER = Path(__file__).parents[2] / "launch.py"
# A process that ended has written its last words; whoever inherited its pipe is not waited for.
_LAST_WORDS_S = 0.5
# A part killed by a signal, or for its silence, before it was ever ready may have been unlucky; one killed so often has a reason, say no
# memory for its weights.
_MOST_EARLY_KILLS = 3
# The one line with which a stage that cannot start leaves: its name, or a variable and its value, and the reason.
_LAST_WORDS = re.compile(r"(tokenizer|compute|sampler|gateway): |[A-Z][A-Z0-9_]*=")
# What stands before the reason: that, or the head of a log line.
_HEAD = re.compile(r"^(\d{4}-\S+Z [A-Z]+ \S+ \S+ )?((tokenizer|compute|sampler|gateway): )?")


class PartFailed(Exception):
    """A part ended by itself, or was killed again and again, before it was ever ready: starting it again would not help."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """How to run a part."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    # Returns when the part can do its work.
    wait_ready: Callable[[], Awaitable[None]]
    # Whether it is alive, ready or not; None = it cannot be asked, and is not watched.
    answers: Answers | None = None
    # Parts of a lower rank are stopped first.
    stop_rank: int = 0


@dataclass(frozen=True, kw_only=True)
class RestartPause:
    """How long to wait before a part that died is started again."""

    first_s: float = 0.1
    longest_s: float = 5.0
    # After so long without a death the next pause is the first again.
    settled_s: float = 10.0

    def after(self, previous_s: float | None, *, up_s: float) -> float:
        """The next pause.

        Args:
            previous_s: the one before; None = there was none.
            up_s: how long the part has lived since.
        """
        if previous_s is None or up_s >= self.settled_s:
            return self.first_s
        return min(previous_s * 2, self.longest_s)


class PartProcess:
    """Keeps one part running.

    Args:
        part: what to run.
        console: takes its log, and what is said about it.
        pause: between a death and the next start.
        hang: how long it may keep silent before it is killed and started again; None = for ever.
    """

    def __init__(self, part: Part, console: Console, *, pause: RestartPause, hang: HangLimits | None) -> None:
        self.part = part
        # Set as long as the part can do its work.
        self.ready = asyncio.Event()
        self._console = console
        self._pause = pause
        self._hang = hang
        # Of the life under way: for how long it had been silent when it was killed for that; None = it was not.
        self._silent_s: float | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._stop_signal = signal.SIGTERM
        self._was_ready = False
        self._last_line = ""
        # May be the reason why it could not start, which is then told by that failure alone.
        self._held_line: str | None = None

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Starts the part, and starts it again whenever it dies or hangs; returns after `terminate` or `kill`, when the process is gone.

        Raises:
            PartFailed: it ended by itself, or was killed for the third time, before it was ever ready.
        """
        loop = asyncio.get_running_loop()
        pause_s: float | None = None
        early_kills = 0
        while True:
            started = loop.time()
            status = await self._run_once()
            self.ready.clear()
            if self._stopping.is_set():
                return
            early_kills += status < 0
            if not self._was_ready and (status >= 0 or early_kills == _MOST_EARLY_KILLS):
                reason = _HEAD.sub("", self._last_line) or "it said nothing"
                raise PartFailed(f"{self.part.name} {self._ending(status)} before it was ready: {reason}")
            self._show_held()
            pause_s = self._pause.after(pause_s, up_s=loop.time() - started)
            self._console.line(f"{self.part.name} {self._ending(status)}, starts again in {pause_s:.1f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            if self._stopping.is_set():
                return

    def terminate(self) -> None:
        """Asks the part to end; it is not started again."""
        self._stop_by(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the part, and whatever it started, at once; it is not started again."""
        self._stop_by(signal.SIGKILL)

    def _stop_by(self, number: signal.Signals) -> None:
        self._stop_signal = number
        self._stopping.set()
        self._signal(number)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _run_once(self) -> int:
        """Runs the process until it ends; returns its status, below zero for a signal."""
        log = _Log(self._log_line)
        reading, writing = os.pipe()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: log, os.fdopen(reading, "rb", 0))
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())),
                *self.part.command,
                env=dict(self.part.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        finally:
            os.close(writing)
        if self._stopping.is_set():
            self._signal(self._stop_signal)
        self._silent_s = None
        watches = [asyncio.create_task(self._watch_ready()), asyncio.create_task(self._watch_answers())]
        try:
            status = await _watched(self._process.wait(), watches)
        finally:
            self._signal(signal.SIGKILL)
            await self._process.wait()
            self._process = None
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            await asyncio.wait([log.ended], timeout=_LAST_WORDS_S)
            transport.close()
        return status

    async def _watch_ready(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        await self.part.wait_ready()
        again = "again " if self._was_ready else ""
        self._console.line(f"{self.part.name} is ready {again}after {loop.time() - started:.1f} s")
        self._show_held()
        self._was_ready = True
        self.ready.set()

    async def _watch_answers(self) -> None:
        """Kills the process, and whatever it started, when it has kept silent for too long. One that was asked to end has its own time for that."""
        if self.part.answers is None or self._hang is None:
            return
        silent_s = await until_hung(self.part.answers, self._hang)
        if not self._stopping.is_set():
            self._silent_s = silent_s
            # A stopped process does not act on any other signal.
            self._signal(signal.SIGKILL)

    def _ending(self, status: int) -> str:
        if self._silent_s is not None:
            return f"did not answer for {self._silent_s:g} s and was killed"
        if status >= 0:
            return f"ended with status {status}"
        return f"was killed by {signal.Signals(-status).name}"

    def _log_line(self, text: str) -> None:
        self._show_held()
        if text.strip():
            self._last_line = text.strip()
        if not self._was_ready and _LAST_WORDS.match(text):
            self._held_line = text
        else:
            self._console.line(text, part=self.part.name)

    def _show_held(self) -> None:
        if self._held_line is not None:
            self._console.line(self._held_line, part=self.part.name)
        self._held_line = None


async def _watched(end: Coroutine[Any, Any, int], watches: Sequence[asyncio.Task[None]]) -> int:
    """The status of a process when it ends. A watch that fails is our fault and told at once: nobody would know when the part is ready."""
    ending = asyncio.create_task(end)
    waiting: set[asyncio.Task[Any]] = {ending, *watches}
    try:
        while not ending.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        return ending.result()
    finally:
        ending.cancel()


class _Log(asyncio.Protocol):
    """Passes on the lines that arrive on a pipe."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._take = take
        self._cutter = LineCutter()

    def data_received(self, data: bytes) -> None:
        """Passes on the lines that the bytes complete."""
        for line in self._cutter.feed(data):
            self._take(line)

    def connection_lost(self, exc: Exception | None) -> None:
        """Passes on what is left."""
        for line in self._cutter.end():
            self._take(line)
        if not self.ended.done():
            self.ended.set_result(None)
