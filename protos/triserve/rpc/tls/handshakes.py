"""How many connections are refused before anybody has said a word: with the wrong certificate, with none, or without TLS.

Neither gRPC nor asyncio tells of a handshake that fails. Both tell of one that begins, and of what comes after one that is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Handshakes:
    """Counts those that do not come to an end.

    Args:
        timeout_s: How long one may take; longer than the server allows.
        port: Gives the port, for the log.
        clock: Seconds, monotonic.

    Attributes:
        refused: Connections that were not heard of again.
    """

    def __init__(self, timeout_s: float, port: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self.refused = 0
        self._timeout_s = timeout_s
        self._port = port
        self._clock = clock
        # When each began, the oldest first. Appended to and taken from by several threads, each in one step.
        self._began: deque[float] = deque()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """A connection was accepted; any thread may say so."""
        self._began.append(self._clock())

    def complete(self) -> None:
        """A connection was heard of. Which one does not matter: as many as are not heard of are left over."""
        with contextlib.suppress(IndexError):
            self._began.popleft()

    def sweep(self) -> None:
        """Counts those that had their time, and logs of them."""
        count, latest = 0, self._clock() - self._timeout_s
        while self._began and self._began[0] <= latest:
            self.complete()
            count += 1
        if count:
            self.refused += count
            logger.warning(
                "port %d: %d connections did not get past TLS, or said nothing, in %g s: the client has no certificate of the CA, one that has"
                " expired, refused ours, or speaks no TLS",
                self._port(),
                count,
                self._timeout_s,
            )

    def start(self) -> None:
        """Sweeps from now on."""
        self._task = asyncio.create_task(self._run(), name="handshakes")

    async def close(self) -> None:
        """Sweeps no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._timeout_s / 2)
            self.sweep()
