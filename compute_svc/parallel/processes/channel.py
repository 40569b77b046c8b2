"""What the first rank and one of the others say to each other besides sums: messages over a stream socket."""

from __future__ import annotations

import socket
import struct
from enum import IntEnum
from typing import NamedTuple

_HEADER = struct.Struct("<BQ")


class Kind(IntEnum):
    """What a message is.

    Attributes:
        LOAD: To a rank: who it is and with which settings, `Start`.
        LOADED: From it: its part of the weights is there.
        FAILED: From it: it cannot load, and why.
        FORWARD: To it: a batch to compute.
        COUNT: To it: pages, of which it is asked how many from the first on hold numbers alone.
        COUNTED: From it: how many, as 8 bytes.
        GRAPHS: To it: the most pages of a request, as 8 bytes; its graphs of decode steps are to be recorded now.
        DECODE: To it: rows of a decode step that its graphs are to compute.
    """

    LOAD = 1
    LOADED = 2
    FAILED = 3
    FORWARD = 4
    COUNT = 5
    COUNTED = 6
    GRAPHS = 7
    DECODE = 8


class Message(NamedTuple):
    """One message."""

    kind: Kind
    content: bytes


class Channel:
    """One end.

    Args:
        connection: A blocking stream socket; the channel closes it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, kind: Kind, content: bytes = b"") -> None:
        """Raises OSError if the other end is closed, or does not read in the socket's time."""
        self._connection.sendall(_HEADER.pack(kind, len(content)) + content)

    def receive(self) -> Message | None:
        """The next message, which is waited for; None when the other end is closed. Raises OSError if it does not come in the socket's time."""
        header = self._read(_HEADER.size)
        if header is None:
            return None
        kind, length = _HEADER.unpack(header)
        content = self._read(length)
        return None if content is None else Message(Kind(kind), content)

    def limit(self, timeout_s: float) -> None:
        """From now on the other end may keep this one waiting for so long."""
        self._connection.settimeout(timeout_s)

    def close(self) -> None:
        """Tells the other end that nothing follows."""
        self._connection.close()

    def _read(self, length: int) -> bytes | None:
        content = bytearray(length)
        view, at = memoryview(content), 0
        while at < length:
            try:
                count = self._connection.recv_into(view[at:])
            except ConnectionResetError:
                count = 0
            if not count:
                return None
            at += count
        return bytes(content)
