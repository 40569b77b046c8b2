"""`python -m compute_svc.engine FD` computes for the process at the other end of that socket; started by it and by nobody else."""

from __future__ import annotations

import socket
import sys

import torch

from compute_svc.engine.child_process import end_with_parent
from compute_svc.engine.engine import Engine
from compute_svc.engine.server import EngineServer
from compute_svc.engine.start.loading import load_engine
from compute_svc.settings import Settings
from triserve.rpc.telemetry import configure_logging


def main() -> None:
    """Serves until the other end is closed."""
    end_with_parent()
    configure_logging("compute")

    def build(settings: Settings) -> Engine:
        configure_logging("compute", as_json=settings.log_format == "json")
        torch.set_num_threads(settings.threads_per_rank)
        return load_engine(settings, on_lost=server.end)

    server = EngineServer(socket.socket(fileno=int(sys.argv[1])), build)
    server.run()


if __name__ == "__main__":
    main()
