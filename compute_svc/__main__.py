"""`python -m compute_svc` serves one replica until SIGTERM."""

from __future__ import annotations

from compute_svc.replica.engine_client import EngineFailed
from compute_svc.replica.service import ComputeService
from compute_svc.settings import Settings
from triserve.rpc.server import run_service


def main() -> None:
    """Reads the settings and serves; ends with status 1 and one line if the engine cannot go on, whose own log says more where there is more."""
    try:
        run_service("compute", Settings, ComputeService)
    except EngineFailed as error:
        raise SystemExit(f"compute: {error}") from None


if __name__ == "__main__":
    main()
