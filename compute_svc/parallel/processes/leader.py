"""The first rank: starts the others, tells them what to compute, and knows when one is lost."""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compute_svc.engine.steps.decode_graphs import DecodeRows
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.models.weights import CheckpointError
from compute_svc.parallel.processes.batch_wire import encode_batch, encode_rows
from compute_svc.parallel.processes.channel import Channel, Kind
from compute_svc.parallel.processes.start import Start, meeting_of
from compute_svc.settings import Settings

_log = logging.getLogger(__name__)

# A rank that died breaks the others' sums at once, and its process is seen to have ended within moments.
_REASON_TIMEOUT_S = 2.0
_STOP_TIMEOUT_S = 5.0


class RanksLost(Exception):
    """A rank has ended, or ranks do not compute the same any more; nothing can be computed. The message says who and how."""


class _Follower(NamedTuple):
    rank: int
    process: subprocess.Popen[bytes]
    channel: Channel


class Leader:
    """Rank 0 of a model that several processes compute.

    Args:
        settings: Of all ranks.
        on_lost: Told once, in words that say all, that nothing more can be computed; from any thread.
    """

    def __init__(self, settings: Settings, on_lost: Callable[[str], None]) -> None:
        self._settings = settings
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._has_reason = threading.Event()
        self._has_joined = self._is_closed = False
        # Its own user alone may look into it.
        self._folder = tempfile.TemporaryDirectory(prefix="triserve-ranks-", ignore_cleanup_errors=True)
        place = str(Path(self._folder.name) / "ranks")
        self._meeting = meeting_of(settings, 0, place)
        self.groups = self._meeting.groups
        self._followers = [self._start(rank, place) for rank in range(1, settings.num_ranks)]
        # Before threads that watch would take the others' end for a loss.
        atexit.register(self.close)

    def join(self) -> None:
        """Waits until all ranks have loaded their parts and are there; from now on they can be lost.

        Raises:
            CheckpointError: One could not load.
            RanksLost: One has ended.
        """
        for follower in self._followers:
            message = follower.channel.receive()
            if message is None:
                raise RanksLost(f"rank {follower.rank} {_how(follower.process.wait())}")
            if message.kind is Kind.FAILED:
                raise CheckpointError(f"rank {follower.rank}: {message.content.decode()}")
        for follower in self._followers:
            follower.channel.limit(self._settings.step_timeout_s)
            threading.Thread(target=self._watch, args=(follower,), name=f"rank {follower.rank}", daemon=True).start()
        try:
            self._meeting.join()
        except RuntimeError as error:
            raise self.lost(error) from error
        self._has_joined = True

    def send(self, batch: ForwardBatch) -> None:
        """Has the other ranks compute a batch, which this one is to compute now. Raises RanksLost if one is lost."""
        self._tell(Kind.FORWARD, encode_batch(batch))

    def begin_graphs(self, max_pages: int) -> None:
        """Has the other ranks record their graphs of decode steps, which this one is to do now. Raises RanksLost if one is lost."""
        self._tell(Kind.GRAPHS, max_pages.to_bytes(8, "little"))

    def decode(self, rows: DecodeRows) -> None:
        """Has the other ranks' graphs compute rows, which this one's are to do now. Raises RanksLost if one is lost."""
        self._tell(Kind.DECODE, encode_rows(rows))

    def count_finite(self, pages: npt.NDArray[np.int64]) -> int:
        """How many of some pages, from the first on, hold numbers alone on all other ranks. Raises RanksLost if one is lost."""
        self._tell(Kind.COUNT, pages.astype(np.int64).tobytes())
        counts = []
        for follower in self._followers:
            try:
                message = follower.channel.receive()
            except OSError as error:
                raise self.lost(error) from error
            if message is None:
                raise self.lost(None)
            counts.append(int.from_bytes(message.content, "little"))
        return min(counts)

    def lost(self, error: Exception | None) -> RanksLost:
        """What to raise where something has failed that all ranks do together: they would not be in the same step any more.

        Args:
            error: What has failed; None = the other end of a stream is closed.

        Effects: `on_lost` is told, unless it was.
        """
        if not self._has_reason.wait(_REASON_TIMEOUT_S):
            self._lose("the ranks are out of step" + ("" if error is None else f": {type(error).__name__}: {error}"))
        return RanksLost(self._reason)

    def close(self) -> None:
        """Ends the other ranks; nobody is told."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        for follower in self._followers:
            follower.channel.close()
            if not self._has_joined:
                # It may be in the midst of a long load.
                follower.process.kill()
        for follower in self._followers:
            try:
                follower.process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                follower.process.kill()
                follower.process.wait()
        atexit.unregister(self.close)
        self._meeting.leave()
        self._folder.cleanup()

    def _start(self, rank: int, place: str) -> _Follower:
        ours, theirs = socket.socketpair()
        safe_path = ("-P",) if sys.flags.safe_path else ()
        command = (sys.executable, *safe_path, "-m", "compute_svc.parallel.processes.follower", str(theirs.fileno()))
        with theirs:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),))
        follower = _Follower(rank, process, Channel(ours))
        start = Start(rank=rank, place=place, settings=self._settings.model_dump_json())
        # `join` sees that one has ended already, and how.
        with contextlib.suppress(OSError):
            follower.channel.send(Kind.LOAD, start.model_dump_json().encode())
        return follower

    def _tell(self, kind: Kind, content: bytes) -> None:
        if self._reason is not None:
            raise RanksLost(self._reason)
        try:
            for follower in self._followers:
                follower.channel.send(kind, content)
        except OSError as error:
            raise self.lost(error) from error

    def _watch(self, follower: _Follower) -> None:
        self._lose(f"rank {follower.rank} {_how(follower.process.wait())}")

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self._is_closed or self._reason is not None:
                return
            self._reason = reason
        _log.error("%s", reason)
        # The process may end without a further word.
        self._folder.cleanup()
        self._has_reason.set()
        self._on_lost(reason)


def _how(status: int) -> str:
    return f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
