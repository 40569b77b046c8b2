"""Says once how manifests are rendered."""

from __future__ import annotations

from tests.deploy.manifests import kubectl


def pytest_report_header() -> str:
    """One line at the head of a run."""
    return f"manifests are rendered by {kubectl() or 'tests/deploy/kustomize.py, there is no kubectl of 1.27 or newer'}"
