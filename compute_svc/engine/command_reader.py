"""Reads the engine's commands off its stream between two steps: all that are there, and no more than leaves time to compute."""

from __future__ import annotations

import select
import socket

from compute_svc.wire.codec import MessageCutter

# At most so much is read before the next step: prompts of two million tokens, which take a few milliseconds to copy.
MAX_BYTES = 8 << 20

# One read; the kernel buffers less than that.
_READ_BYTES = 1 << 20

# A message that has begun is being written: the rest of it, and what follows, is worth waiting for while it keeps coming.
_PATIENCE_MS = 1


class CommandReader:
    """Reads messages from a stream socket.

    Args:
        connection: Stays the caller's.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._cutter = MessageCutter()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def read(self, timeout_s: float | None) -> list[bytes] | None:
        """What has arrived.

        Reads until nothing is left, so that a short command is not held up for a step by each buffer of prompts before it.

        Args:
            timeout_s: How long to wait for the first byte; None = for ever.

        Returns:
            Messages, none if there is none yet; None when the other end is closed.
        """
        if timeout_s != 0 and not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            return []
        messages: list[bytes] = []
        num_bytes = 0
        while num_bytes < MAX_BYTES:
            try:
                data = self._connection.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if self._cutter.is_between_messages or not self._poll.poll(_PATIENCE_MS):
                    break
                continue
            if not data:
                # What came before the end is still to be done; the next read finds the end again.
                return messages or None
            num_bytes += len(data)
            messages += self._cutter.feed(data)
        return messages
