"""Free TCP ports on loopback, of which no two processes that test at a time are given the same one."""

from __future__ import annotations

import itertools
import os
import socket

# Below the ports of outgoing connections and of servers that ask for any: nobody else comes by one of these between here and who listens.
_FIRST, _PER_WORKER, _MOST_WORKERS = 10_000, 1_000, 10
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _MOST_WORKERS
# One of these processes may be started in another's place, while what that left still listens.
_offsets = itertools.count(os.getpid() % _PER_WORKER)


def free_port() -> int:
    """A port nobody listens on now."""
    for offset in itertools.islice(_offsets, _PER_WORKER):
        port = _FIRST + _worker * _PER_WORKER + offset % _PER_WORKER
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {_FIRST + _worker * _PER_WORKER} on")
