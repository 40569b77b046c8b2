"""`python -m compute_svc` serves one replica until SIGTERM."""

from __future__ import annotations

from compute_svc.replica.service import ComputeService
from compute_svc.settings import Settings
from triserve.rpc.server import run_service


def main() -> None:
    """Reads the settings and serves."""
    run_service("compute", Settings, ComputeService)


if __name__ == "__main__":
    main()
