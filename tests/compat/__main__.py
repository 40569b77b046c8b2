"""Starts a pipeline with a real model, runs each client's checks against it and prints a table of client x feature.

Leaves with 1 when a check fails. Versions and outcomes go to `tests/bench/results/compat.json`. The model is SmolLM2 with a chat template that takes tools: it writes sense
enough for free text, and what only a better model would do (calls of tools, objects of a schema) is asked for in ways that a server must hold any model to.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from tests.e2e.local_pipeline import Pipeline
from tests.fakes.tool_templates import TOOL_STYLES
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
RESULTS = ROOT / "tests" / "bench" / "results" / "compat.json"
_PATIENCE_S = 300
_MAX_SHOWN_CHARS = 4000
# Where a client's package is installed if not in .venv-compat-openai3 alone: not all of them can be in one environment (see the files of requirements).
_OPENAI_3, _OPENAI_2, _LOAD = ".venv-compat-openai3", ".venv-compat-openai2", ".venv-compat-load"
_ENVIRONMENTS = {
    "aiperf_client": [_LOAD],
    "guidellm_client": [_LOAD],
    "instructor_client": [_OPENAI_2],
    "llama_index_client": [_OPENAI_2],
    "openai_client": [_OPENAI_3, _OPENAI_2],
    "smg_client": [_OPENAI_2],
}
# Clients talk to our server and to nobody else.
_ALONE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PYDANTIC_AI_DISABLE_TELEMETRY": "1",
}


class Check(NamedTuple):
    """One feature of one client."""

    client: str
    version: str
    feature: str
    # Empty = it works.
    failure: str


class Server(NamedTuple):
    """What clients are pointed at."""

    # Without /v1.
    url: str
    model: str
    # Where its replica speaks vLLM's engine gRPC, host:port.
    vllm_worker: str
    # Has its tokenizer.
    folder: Path


def main() -> int:
    """Runs what was asked for."""
    everything = sorted(
        path.stem for path in CLIENTS.iterdir() if path.stem not in ("checks", "__init__") and path.suffix in (".py", ".mjs")
    )
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", choices=[[], *everything], metavar="CLIENT", help=f"of {', '.join(everything)}; none = all")
    parser.add_argument("--url", help="a server of SmolLM2 that runs already, without /v1; default: a pipeline is started")
    parser.add_argument(
        "--vllm-worker", default=f"127.0.0.1:{free_port()}", help="its compute replica's COMPUTE_VLLM_LISTEN; default: that of the pipeline"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_with_tools(Path(scratch))
        options = ["--model", str(folder), "--max-model-len", "2048"]
        pipeline = None if arguments.url else Pipeline(options, environment={"COMPUTE_VLLM_LISTEN": arguments.vllm_worker})
        if pipeline is not None:
            pipeline.start()
        try:
            url = arguments.url or (pipeline.url if pipeline else "")
            with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
                server = Server(url, str(json.load(response)["data"][0]["id"]), arguments.vllm_worker, folder)
            checks = [check for name in arguments.clients or everything for check in run_client(name, server)]
        finally:
            if pipeline is not None:
                pipeline.stop()
    sys.stdout.write(table(checks))
    if not arguments.clients:
        RESULTS.write_text(json.dumps({"checks": [{**check._asdict(), "ok": not check.failure} for check in checks]}, indent=1) + "\n")
    return 1 if any(check.failure for check in checks) or not checks else 0


def model_with_tools(scratch: Path) -> Path:
    """A folder of SmolLM2 whose chat template takes tools, as Qwen's does: its own takes none."""
    folder = scratch / "smollm2-tools"
    folder.mkdir()
    for file in resolve_model(None, download_from_hub, os.environ).folder.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    template = folder / "chat_template.jinja"
    template.unlink(missing_ok=True)
    template.write_text(TOOL_STYLES["qwen"])
    return folder


def run_client(name: str, server: Server) -> list[Check]:
    """The outcomes of one client's checks, in each of its environments; a client that does not even start is one failure."""
    arguments = [str(part) for part in server]
    if (CLIENTS / f"{name}.mjs").is_file():
        return _outcomes(name, ["node", str(CLIENTS / f"{name}.mjs"), *arguments])
    commands = [
        [str(ROOT / environment / "bin" / "python"), "-m", f"tests.compat.clients.{name}", *arguments]
        for environment in _ENVIRONMENTS.get(name, [_OPENAI_3])
    ]
    return [check for command in commands for check in _outcomes(name, command)]


def _outcomes(name: str, command: list[str]) -> list[Check]:
    try:
        ended = subprocess.run(
            command,
            env={**os.environ, **_ALONE, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Check(name, "", "ends", f"still running after {_PATIENCE_S} s")]
    except FileNotFoundError:
        return [Check(name, "", "starts", f"{command[0]} is not installed")]
    lines = [line for line in ended.stdout.splitlines() if line.startswith('{"client"')]
    checks = [Check(**json.loads(line)) for line in lines]
    if ended.returncode != 0 or not checks:
        last = (ended.stderr.strip() or "it said nothing").splitlines()[-1]
        checks.append(Check(name, "", "starts", f"left with {ended.returncode}: {last}"))
    if any(check.failure for check in checks):
        sys.stderr.write(ended.stderr[-_MAX_SHOWN_CHARS:])
    return checks


def table(checks: list[Check]) -> str:
    """One line for each check, failures with what went wrong."""
    rows = [(f"{check.client} {check.version}".strip(), check.feature, check.failure or "ok") for check in checks]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)] if rows else [0, 0]
    lines = [f"{client:<{widths[0]}}  {feature:<{widths[1]}}  {outcome}" for client, feature, outcome in rows]
    failed = sum(1 for check in checks if check.failure)
    return "\n".join([*lines, f"{len(checks)} checks, {failed} failed", ""])


if __name__ == "__main__":
    sys.exit(main())
