"""Starts a pipeline with the tiny model, runs each client's checks against it and prints a table of client x feature.

Leaves with 1 when a check fails. Versions and outcomes go to `tests/bench/results/compat.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import NamedTuple

from tests.e2e.local_pipeline import Pipeline, free_port

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
RESULTS = ROOT / "tests" / "bench" / "results" / "compat.json"
PYTHON = ROOT / ".venv-compat" / "bin" / "python"
_PATIENCE_S = 300
# Clients talk to our server and to nobody else.
_ALONE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1"}


class Check(NamedTuple):
    """One feature of one client."""

    client: str
    version: str
    feature: str
    # Empty = it works.
    failure: str


def main() -> int:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", help="names of files in tests/compat/clients; none = all")
    parser.add_argument("--python", type=Path, default=PYTHON, help="interpreter of the environment the clients are installed in")
    parser.add_argument("--url", help="a server that runs already, without /v1; default: a pipeline is started")
    parser.add_argument(
        "--vllm-worker", default=f"127.0.0.1:{free_port()}", help="its compute replica's COMPUTE_VLLM_LISTEN; default: that of the pipeline"
    )
    arguments = parser.parse_args()
    names = arguments.clients or sorted(path.stem for path in CLIENTS.glob("[a-z]*.py") if path.stem != "checks")
    pipeline = None if arguments.url else Pipeline(["--dtype", "float32"], environment={"COMPUTE_VLLM_LISTEN": arguments.vllm_worker})
    if pipeline is not None:
        pipeline.start()
    try:
        url = arguments.url or (pipeline.url if pipeline else "")
        with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
            model = str(json.load(response)["data"][0]["id"])
        checks = [check for name in names for check in run_client(name, [url, model, arguments.vllm_worker], arguments.python)]
    finally:
        if pipeline is not None:
            pipeline.stop()
    sys.stdout.write(table(checks))
    if not arguments.clients:
        RESULTS.write_text(json.dumps({"checks": [check._asdict() for check in checks]}, indent=1) + "\n")
    return 1 if any(check.failure for check in checks) or not checks else 0


def run_client(name: str, server: list[str], python: Path) -> list[Check]:
    """The outcomes of one client's checks; a client that does not even start is one failure."""
    try:
        ended = _run(name, server, python)
    except subprocess.TimeoutExpired:
        return [Check(name, "", "ends", f"still running after {_PATIENCE_S} s")]
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"client"')]
    checks = [Check(**json.loads(line)) for line in lines]
    if ended.returncode != 0 or not checks:
        last = (ended.stderr.strip() or "it said nothing").splitlines()[-1]
        checks.append(Check(name, "", "starts", f"left with {ended.returncode}: {last}"))
    return checks


def _run(name: str, server: list[str], python: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-m", f"tests.compat.clients.{name}", *server],
        env={**os.environ, **_ALONE, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )


def table(checks: list[Check]) -> str:
    """One line for each check, failures with what went wrong."""
    rows = [(f"{check.client} {check.version}".strip(), check.feature, check.failure or "ok") for check in checks]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)] if rows else [0, 0]
    lines = [f"{client:<{widths[0]}}  {feature:<{widths[1]}}  {outcome}" for client, feature, outcome in rows]
    failed = sum(1 for check in checks if check.failure)
    return "\n".join([*lines, f"{len(checks)} checks, {failed} failed", ""])


if __name__ == "__main__":
    sys.exit(main())
