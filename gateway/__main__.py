"""`python -m gateway`: serves HTTP and gRPC until SIGTERM, then drains."""

from __future__ import annotations

from gateway.service import GatewayService
from gateway.settings import Settings
from triserve.rpc.server import run_service


def main() -> None:
    """Runs the gateway."""
    run_service("gateway", Settings, GatewayService)


if __name__ == "__main__":
    main()
