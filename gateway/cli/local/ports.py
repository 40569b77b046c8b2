"""Free TCP ports on loopback."""

from __future__ import annotations

import errno
import os
import random
import socket
from contextlib import ExitStack

HOST = "127.0.0.1"

# Below the range from which systems take the ports of outgoing connections: while a part restarts, nobody is given its port.
_FIRST, _LAST = 20_000, 32_000
_TRIES = 1000


class PortTaken(Exception):
    """Somebody else listens on the port."""


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, all different.

    Raises:
        OSError: there are not enough.
    """
    with ExitStack() as bound:
        ports: list[int] = []
        for port in random.sample(range(_FIRST, _LAST), _TRIES):
            if len(ports) == count:
                break
            try:
                bound.enter_context(socket.create_server((HOST, port)))
            except OSError:
                continue
            ports.append(port)
        if len(ports) < count:
            raise OSError(errno.EADDRINUSE, f"no {count} free ports between {_FIRST} and {_LAST}")
        return ports


def require_free(port: int, *, option: str) -> None:
    """Returns if the port can be listened on.

    Args:
        port: to try.
        option: with which another one is chosen.

    Raises:
        PortTaken: it cannot; names the port and says why.
    """
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise PortTaken(f"port {port} cannot be used: {os.strerror(error.errno or 0)}; choose another with {option}") from None
