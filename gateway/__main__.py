"""`python -m gateway`: serves HTTP and gRPC until SIGTERM, then drains."""

from __future__ import annotations

from gateway.auth import BadKeysFile
from gateway.http.server import CannotListen
from gateway.service import GatewayService, NoEmbedder
from gateway.settings import Settings
from gateway.workers import WorkerFailed, Workers
from triserve.rpc.server import Service, run_service
from triserve.rpc.traces.spans import Tracer


def main() -> None:
    """Runs the gateway; ends with status 1 and one line if it cannot start."""
    try:
        run_service("gateway", Settings, _make)
    except WorkerFailed as error:
        # The worker has said why.
        raise SystemExit(error.status) from None
    except (BadKeysFile, CannotListen, NoEmbedder) as error:
        raise SystemExit(f"gateway: {error}") from None


def _make(settings: Settings, tracer: Tracer | None) -> Service:
    return GatewayService(settings, tracer) if settings.workers == 1 else Workers(settings)


if __name__ == "__main__":
    main()
