"""The process that checks grammars: one child for each, forked ahead of it, so that each begins alike and any may be killed.

A line of JSON comes first, `Words`; then one for each grammar, a `Job`; a line goes out for each as it is done, a `Verdict`. It imports little and has
one thread: a fork of it costs milliseconds, and is whole. It ends with its standard input, and its children with it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from sampler_svc.grammar_check.errors import CannotHold
from sampler_svc.grammar_check.longest_match import LongestMatch
from sampler_svc.grammar_check.source import Written, limits_of, reworded, source_of

_PIECE_BYTES = 1 << 16
# Half of what threads have for the same grammar, which is compiled in one of them when it has passed.
_STACK_BYTES = 4 << 20
_MAX_SOURCE_CHARS = 4 << 20
# What killed a child.
_TIME, _MEMORY = "time", "memory"


class _Run(NamedTuple):
    """A child at its grammar."""

    number: int
    pid: int
    deadline: float  # on the monotonic clock
    output: bytearray


class _Spare(NamedTuple):
    """A child that waits for its grammar."""

    pid: int
    job: int  # where that is written
    verdict: int  # where its verdict is read


class _Words:
    """The tokenizer as the sampler has it, but that it needs no merges: a text may be written in other tokens, never in other bytes."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.tokens = [token.encode("latin-1") for token in told["tokens"]]
        self.special_token_ids = told["special"]
        self.eos_token_id = told["end"]
        self.bos_token_id = None
        special = set(self.special_token_ids)
        self.special_ids = {self.tokens[token].decode(): token for token in special - {self.eos_token_id}}
        self._longest = LongestMatch([b"" if number in special else token for number, token in enumerate(self.tokens)])

    def __call__(self, text: bytes) -> list[int]:
        return self._longest(text)


class ForkServer:
    """Runs jobs in children and says what came of each.

    Args:
        reads: descriptor of jobs.
        writes: descriptor of verdicts.
    """

    def __init__(self, reads: int, writes: int) -> None:
        self._reads = reads
        self._writes = writes
        self._input = bytearray()
        self._runs: dict[int, _Run] = {}
        self._poll = select.poll()
        self._check: Callable[[Written], dict[str, Any]] | None = None
        # Forked when a verdict has been told: the next grammar need not wait for it.
        self._spare: _Spare | None = None

    def serve(self) -> None:
        """Returns when no more can be asked."""
        self._poll.register(self._reads, select.POLLIN)
        while True:
            for descriptor, _ in self._poll.poll(self._wait_ms()):
                piece = os.read(descriptor, _PIECE_BYTES)
                if descriptor in self._runs:
                    self._hear(descriptor, piece)
                elif not piece:
                    self._leave()
                    return
                else:
                    self._input += piece
            while (end := self._input.find(b"\n")) >= 0:
                line = json.loads(self._input[:end])
                del self._input[: end + 1]
                if self._check is None:
                    self._check = _checker(line)
                else:
                    self._start(line)
            self._end_late_ones()
            if self._spare is None and self._check is not None and not self._runs:
                self._spare = self._fork()

    def _wait_ms(self) -> float | None:
        if not self._runs:
            return None
        return max(0.0, 1000 * (min(run.deadline for run in self._runs.values()) - time.monotonic()) + 1)

    def _fork(self) -> _Spare:
        job_read, job_write = os.pipe()
        verdict_read, verdict_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            for descriptor in (self._reads, self._writes, job_write, verdict_read):
                os.close(descriptor)
            assert self._check is not None, "the tokenizer comes before grammars"
            _be_child(job_read, verdict_write, self._check)
        os.close(job_read)
        os.close(verdict_write)
        return _Spare(pid, job_write, verdict_read)

    def _start(self, job: dict[str, Any]) -> None:
        spare, self._spare = self._spare or self._fork(), None
        self._runs[spare.verdict] = _Run(job["number"], spare.pid, time.monotonic() + job["limit_s"], bytearray())
        self._poll.register(spare.verdict, select.POLLIN)
        # One that has died is heard of where its verdict was to come.
        with contextlib.suppress(BrokenPipeError):
            _write(spare.job, json.dumps(job).encode())
        os.close(spare.job)

    def _hear(self, descriptor: int, piece: bytes) -> None:
        output = self._runs[descriptor].output
        if piece:
            output.extend(piece)
            if piece.endswith(b"\n"):
                # Told before its process is gone, which takes longer than most grammars do.
                self._tell(self._runs[descriptor].number, json.loads(output))
            return
        run = self._forget(descriptor)
        _, status = os.waitpid(run.pid, 0)
        if not output.endswith(b"\n"):
            is_late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
            self._tell(run.number, {"killed": _TIME if is_late else _MEMORY})

    def _end_late_ones(self) -> None:
        now = time.monotonic()
        for descriptor in [descriptor for descriptor, run in self._runs.items() if run.deadline <= now]:
            run = self._forget(descriptor)
            os.kill(run.pid, signal.SIGKILL)
            os.waitpid(run.pid, 0)
            if not run.output.endswith(b"\n"):
                self._tell(run.number, {"killed": _TIME})

    def _forget(self, descriptor: int) -> _Run:
        self._poll.unregister(descriptor)
        os.close(descriptor)
        return self._runs.pop(descriptor)

    def _tell(self, number: int, verdict: dict[str, Any]) -> None:
        _write(self._writes, json.dumps({"number": number, **verdict}).encode() + b"\n")

    def _leave(self) -> None:
        for pid in [*(run.pid for run in self._runs.values()), *([self._spare.pid] if self._spare is not None else [])]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _checker(told: dict[str, Any]) -> Callable[[Written], dict[str, Any]]:
    """What is done for a grammar, with all that can be made ready for it."""
    words = _Words(told)
    tokenizer = LLTokenizer(TokenizerWrapper(words))

    def check(written: Written) -> dict[str, Any]:
        before = _resident_bytes()
        try:
            source = source_of(written, words.special_ids)
        except CannotHold as error:
            return {"error": error.why}
        except ValueError as error:
            return {"error": str(error)}
        if len(source) > _MAX_SOURCE_CHARS:
            return {"error": f"it is too large, written out it has {len(source)} characters and the limit is {_MAX_SOURCE_CHARS}"}
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits_of(written, told["limits"]))
        if not matcher.is_error():
            # As dear as the grammar itself where there is much to choose from at once.
            matcher.compute_bitmask()
        if matcher.is_error():
            return {"error": reworded(matcher.get_error())}
        return {"source": source, "bytes": max(0, _resident_bytes() - before)}

    check(Written("regex", "a"))
    return check


def _be_child(reads: int, writes: int, check: Callable[[Written], dict[str, Any]]) -> None:
    """Waits for one grammar, checks it and ends. Does not return."""
    code = 1
    try:
        text = bytearray()
        while piece := os.read(reads, _PIECE_BYTES):
            text += piece
        if text:
            job = json.loads(text)
            _limit_self(job)
            _write(writes, json.dumps(check(_written(job["grammar"]))).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def _written(told: dict[str, Any]) -> Written:
    return Written(told["kind"], told["text"], told["frame"], tuple(told["markers"]), tuple(told["frame_markers"]), told["lenient"])


def _limit_self(job: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = math.ceil(job["limit_s"]) + 1
    # For when there is nobody left to kill it.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    _lower(resource.RLIMIT_STACK, _STACK_BYTES)
    if (size := _mapped_bytes()) is not None:
        _lower(resource.RLIMIT_AS, size + job["memory_bytes"])
    os.nice(job["nice"])
    # What dies says why, and some of the grammar with it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _lower(which: int, limit: int) -> None:
    soft, hard = resource.getrlimit(which)
    known = [limit, *(one for one in (soft, hard) if one != resource.RLIM_INFINITY)]
    resource.setrlimit(which, (min(known), hard))


def _mapped_bytes() -> int | None:
    """Of this process's addresses; None = this system does not say."""
    numbers = _memory_pages()
    return None if numbers is None else int(numbers[0]) * resource.getpagesize()


def _resident_bytes() -> int:
    """Of this process's memory that no file is behind; 0 where the system does not say."""
    numbers = _memory_pages()
    return 0 if numbers is None else (int(numbers[1]) - int(numbers[2])) * resource.getpagesize()


def _memory_pages() -> Sequence[str] | None:
    try:
        return Path("/proc/self/statm").read_text().split()
    except OSError:
        return None


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
