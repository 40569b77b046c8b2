"""`python -m compute_svc.engine FD` computes for the process at the other end of that socket; started by it and by nobody else."""

from __future__ import annotations

import ctypes
import signal
import socket
import sys

import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.loading import load_engine
from compute_svc.engine.server import EngineServer
from compute_svc.settings import Settings
from triserve.rpc.telemetry import configure_logging

_PR_SET_PDEATHSIG = 1


def _build(settings: Settings) -> Engine:
    configure_logging("compute", as_json=settings.log_format == "json")
    torch.set_num_threads(settings.threads)
    return load_engine(settings)


def main() -> None:
    """Serves until the other end is closed."""
    # The other process is the one that is told to stop, and drains first; both may get the signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # Where a closed socket is seen only after a long load or step, the parent's death counts at once.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    configure_logging("compute")
    EngineServer(socket.socket(fileno=int(sys.argv[1])), _build).run()


if __name__ == "__main__":
    main()
