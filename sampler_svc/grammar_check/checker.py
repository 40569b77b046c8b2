"""Has grammars checked before the sampler compiles them: what is hostile dies elsewhere, and nobody waits for it longer than is said.

A grammar has a short time at first, which nearly all need a hundredth of. One that needs more begins anew among those that have the whole limit, one
at a time and behind everything else: however many of these there are, others wait for none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from subprocess import PIPE, Popen
from typing import Any, NamedTuple

from triserve.rpc.errors import Internal, InvalidRequest, Overloaded, ServiceError
from triserve.rpc.sampling import Grammar

logger = logging.getLogger(__name__)

_SHORT_S = 0.2
_SHORT_NICE, _LONG_NICE = 0, 10
# Verdicts that are kept, the characters of all their texts together, and the seconds of one that says that a grammar took too long.
_MAX_KEPT = 4096
_MAX_KEPT_CHARS = 16 << 20
_KEPT_LATE_S = 60.0
_MAX_WAITING = 256
# A process may take so long to start, and to answer beyond a grammar's time.
_START_S = 20.0
_MAX_SHOWN_CHARS = 300
# Of a grammar, in what llguidance says of it.
_QUOTED_LINE = re.compile(r"^ *\d+ \|.*$", re.MULTILINE)
# A verdict has the grammar as it is to be compiled.
_MAX_LINE_BYTES = 32 << 20


class CheckLimits(NamedTuple):
    """What a grammar may cost.

    Attributes:
        time_s: seconds to compile.
        memory_bytes: that compiling takes.
        workers: grammars that are checked at once, beside one that takes long.
    """

    time_s: float = 2.0
    memory_bytes: int = 128 << 20
    workers: int = 2


class Checked(NamedTuple):
    """A grammar that can be compiled within the limits.

    Attributes:
        source: what llguidance compiles.
        num_bytes: of memory that it takes, compiled; about.
    """

    source: str
    num_bytes: int


class Words(NamedTuple):
    """What a checking process is told of the tokenizer and of llguidance's limits.

    Attributes:
        tokens: what each id is written as.
        special: ids of special tokens.
        end: the id that ends a text.
        limits: by name.
    """

    tokens: list[bytes]
    special: list[int]
    end: int
    limits: dict[str, int]


class _Late(Exception):
    """A grammar has taken its time."""


class GrammarChecker:
    """Checks grammars in a process of its own, which starts with the first and is started again where it dies.

    Args:
        words: gives what the process is told, when it starts.
        limits: on each grammar.
    """

    def __init__(self, words: Callable[[], Awaitable[Words]], limits: CheckLimits | None = None) -> None:
        self._words = words
        self._limits = limits or CheckLimits()
        self._process: _Checking | None = None
        self._starting = asyncio.Lock()
        short_s = min(_SHORT_S, self._limits.time_s)
        self._short = _Lane(self._limits.workers, short_s, self._limits.time_s)
        self._long = _Lane(1, self._limits.time_s, self._limits.time_s)
        self._running: dict[Grammar, asyncio.Task[Checked]] = {}
        self._kept: OrderedDict[Grammar, tuple[Checked | InvalidRequest, float]] = OrderedDict()
        self._kept_chars = 0

    async def check(self, grammar: Grammar) -> Checked:
        """What came of checking a grammar, now or before; requests that have the same share it.

        Raises:
            InvalidRequest: it is none, asks for what cannot be held, or costs too much.
            Overloaded: too many wait.
        """
        kept = self._kept.get(grammar)
        if kept is not None and kept[1] > time.monotonic():
            self._kept.move_to_end(grammar)
            if isinstance(kept[0], InvalidRequest):
                raise InvalidRequest(kept[0].message, field=kept[0].field)
            return kept[0]
        task = self._running.get(grammar)
        if task is None:
            task = self._running[grammar] = asyncio.create_task(self._checked(grammar))
            task.add_done_callback(lambda done: self._settle(grammar, done))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends the process, and all checks with it. Nothing may be checked any more."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._process is not None:
            await self._process.kill()

    def _settle(self, grammar: Grammar, done: asyncio.Task[Checked]) -> None:
        del self._running[grammar]
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or not (error is None or isinstance(error, InvalidRequest)):
            return
        until = time.monotonic() + _KEPT_LATE_S if isinstance(error, _TooDear) else float("inf")
        self._drop(grammar)
        outcome = error if isinstance(error, InvalidRequest) else done.result()
        self._kept[grammar] = (outcome, until)
        self._kept_chars += _num_chars(grammar, outcome)
        while len(self._kept) > _MAX_KEPT or (self._kept_chars > _MAX_KEPT_CHARS and len(self._kept) > 1):
            self._drop(next(iter(self._kept)))

    def _drop(self, grammar: Grammar) -> None:
        kept = self._kept.pop(grammar, None)
        if kept is not None:
            self._kept_chars -= _num_chars(grammar, kept[0])

    async def _checked(self, grammar: Grammar) -> Checked:
        for lane, nice in ((self._short, _SHORT_NICE), (self._long, _LONG_NICE)):
            async with lane:
                verdict = await self._verdict(grammar, lane.limit_s, nice)
            if "source" in verdict:
                return Checked(verdict["source"], verdict["bytes"])
            if "error" in verdict:
                raise refused(verdict["error"])
            if verdict["killed"] == "memory":
                # A stack that cannot grow looks alike.
                raise _TooDear(
                    f"it is too complex: compiling it takes more than {self._limits.memory_bytes >> 20} MiB, or it nests too deep"
                )
        raise _TooDear(f"it is too complex: compiling it takes longer than {self._limits.time_s:g} s")

    async def _verdict(self, grammar: Grammar, limit_s: float, nice: int) -> dict[str, Any]:
        limits = {"limit_s": limit_s, "nice": nice, "memory_bytes": self._limits.memory_bytes}
        job = {"grammar": dataclasses.asdict(grammar), **limits}
        # A process that dies costs what it was asked one more try.
        for _ in range(2):
            try:
                process = await self._started()
            except OSError as error:
                logger.error("the process that checks grammars cannot be started: %s", error)
                continue
            try:
                async with asyncio.timeout(limit_s + _START_S):
                    return await process.ask(job)
            except TimeoutError:
                logger.error("the process that checks grammars does not answer")
                await process.kill()
            except _Gone:
                logger.error("the process that checks grammars has ended")
        raise Internal("the grammar could not be checked")

    async def _started(self) -> _Checking:
        async with self._starting:
            if self._process is None or self._process.is_gone:
                words = await self._words()
                self._process = await _Checking.start(words)
            return self._process


class _TooDear(InvalidRequest):
    """A grammar costs more than it may, where other machines or other moments may decide otherwise."""

    def __init__(self, why: str) -> None:
        super().__init__(f"grammar cannot be held: {why}", field="grammar")


class _Gone(Exception):
    """The process has ended."""


class _Lane:
    """Grammars that have the same time; entered by one of them.

    Args:
        places: that are in it at once.
        limit_s: seconds of each.
        wait_s: seconds that one may wait to enter.
    """

    def __init__(self, places: int, limit_s: float, wait_s: float) -> None:
        self.limit_s = limit_s
        self._wait_s = wait_s
        self._places = asyncio.Semaphore(places)
        self._waiting = 0

    async def __aenter__(self) -> None:
        if self._waiting >= _MAX_WAITING:
            raise _busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._places.acquire()
        except TimeoutError:
            raise _busy() from None
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._places.release()


class _Checking:
    """A process that checks, and what it was asked.

    Args:
        process: that was started.
        stdin: of it.
        stdout: of it.
        answers: what comes from it.
    """

    def __init__(
        self, process: Popen[bytes], stdin: asyncio.WriteTransport, stdout: asyncio.ReadTransport, answers: asyncio.StreamReader
    ) -> None:
        self._process = process
        self._stdin = stdin
        self._stdout = stdout
        self._answers = answers
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self.is_gone = False
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, words: Words) -> _Checking:
        """Starts one.

        Raises:
            OSError: there is no room for it.
        """
        command = (sys.executable, "-m", "sampler_svc.grammar_check")
        # Not by the event loop, which forks in a way that wakes gRPC's fork handlers: they may abort the process before it has begun. In a session of its
        # own, for a terminal's signals are the sampler's: it ends when that closes the pipe.
        process = await asyncio.to_thread(Popen, command, bufsize=0, stdin=PIPE, stdout=PIPE, start_new_session=True)
        loop = asyncio.get_running_loop()
        answers = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        stdin, _ = await loop.connect_write_pipe(asyncio.Protocol, process.stdin)
        stdout, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(answers), process.stdout)
        checking = cls(process, stdin, stdout, answers)
        told = words._asdict() | {"tokens": [token.decode("latin-1") for token in words.tokens]}
        with contextlib.suppress(_Gone):
            # One that has ended already says so when it is asked.
            checking._write(told)
        return checking

    async def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """What came of a job.

        Raises:
            _Gone: the process has ended.
        """
        self._number += 1
        number = self._number
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            self._write({"number": number, **job})
            return await future
        finally:
            self._asked.pop(number, None)

    async def kill(self) -> None:
        """Ends it, and waits until it has. Idempotent."""
        self.is_gone = True
        self._process.kill()
        await self._reader

    def _write(self, message: dict[str, Any]) -> None:
        # A process that has ended is noticed here first, or where its answers are read.
        self.is_gone = self.is_gone or self._stdin.is_closing()
        if self.is_gone:
            raise _Gone
        self._stdin.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> None:
        try:
            while line := await self._answers.readline():
                verdict = json.loads(line)
                future = self._asked.get(verdict["number"])
                if future is not None and not future.done():
                    future.set_result(verdict)
        finally:
            self.is_gone = True
            # It has ended, or ends with this.
            self._stdin.close()
            self._stdout.close()
            await asyncio.to_thread(self._process.wait)
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(_Gone())


def refused(why: str) -> InvalidRequest:
    """What a client is told of a grammar that cannot be held."""
    # Without the lines of the grammar, which need not be the client's own, and without the parser's state, which has the answer in it.
    line = " ".join(_QUOTED_LINE.sub("", why.partition("<state>")[0]).split())
    shown = "".join(character if character.isprintable() else "?" for character in line[:_MAX_SHOWN_CHARS])
    return InvalidRequest(f"grammar cannot be held: {shown}", field="grammar")


def _busy() -> ServiceError:
    return Overloaded("too many grammars are being checked; try again", field="grammar")


def _num_chars(grammar: Grammar, outcome: Checked | InvalidRequest) -> int:
    return len(grammar.text) + len(grammar.frame) + (len(outcome.source) if isinstance(outcome, Checked) else len(outcome.message))
