"""`python -m sampler_svc` serves one sampler until SIGTERM."""

from __future__ import annotations

from sampler_svc.service import SamplerService
from sampler_svc.settings import Settings
from triserve.rpc.server import run_service


def main() -> None:
    """Reads the settings and serves."""
    run_service("sampler", Settings, SamplerService)


if __name__ == "__main__":
    main()
