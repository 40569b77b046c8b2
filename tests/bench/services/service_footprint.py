"""What each CPU service needs alone: installs `.[extra]` into an empty environment, starts the service, measures.

Reports seconds from start to ready, resident memory when ready, and that torch is not installed. Writes a results file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from gateway.cli.hardware import describe_hardware
from tests.ports import free_port
from triserve.rpc.channel import is_ready, open_channel

ROOT = Path(__file__).parents[3]
RESULTS = Path(__file__).parents[1] / "results" / "service_footprint.json"
MODEL = ROOT / "tests" / "tiny_model"
_PATIENCE_S = 60.0
_POLL_S = 0.005


def _install(extra: str, folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    constraints = ROOT / "deploy" / "constraints.txt"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints), f"{ROOT}[{extra}]"], check=True)
    missing = subprocess.run([str(python), "-c", "import torch"], capture_output=True, check=False, cwd=folder)
    assert missing.returncode != 0, f"the extra {extra} brings torch"
    return python


@contextmanager
def _running(python: Path, module: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [str(python), "-m", module], env={"PATH": os.environ["PATH"], **environment}, cwd="/", stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _grpc_ready(target: str, service: str) -> bool:
    async def ask() -> bool:
        async with open_channel(target) as channel:
            return await is_ready(channel, service, timeout_s=1)

    return asyncio.run(ask())


def _http_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait(ready: Any, began: float) -> float:
    while not ready():
        assert time.perf_counter() - began < _PATIENCE_S, "the service does not become ready"
        time.sleep(_POLL_S)
    return time.perf_counter() - began


def _measure_once(pythons: dict[str, Path]) -> dict[str, dict[str, float]]:
    ports = {name: free_port() for name in ("tokenizer", "sampler", "compute", "gateway", "grpc")}
    addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    figures = {}
    with ExitStack() as stack:

        def start(name: str, module: str, environment: dict[str, str], ready: Any) -> None:
            began = time.perf_counter()
            process = stack.enter_context(_running(pythons[name], module, environment))
            seconds = _wait(ready, began)
            resident = psutil.Process(process.pid).memory_info().rss
            figures[name] = {"ready_s": round(seconds, 2), "resident_mb": round(resident / 1e6, 1)}

        for name in ("tokenizer", "sampler"):
            environment = {f"{name.upper()}_LISTEN": addresses[name], f"{name.upper()}_MODEL": str(MODEL)}
            service = f"triserve.v1.{name.capitalize()}Service"
            start(name, f"{name}_svc", environment, lambda name=name, service=service: _grpc_ready(addresses[name], service))
        compute = {"COMPUTE_LISTEN": addresses["compute"], "COMPUTE_MODEL": str(MODEL), "COMPUTE_SAMPLERS": addresses["sampler"]}
        start("compute", "compute_svc", compute, lambda: _grpc_ready(addresses["compute"], "triserve.v1.ComputeService"))
        gateway = {
            "GATEWAY_LISTEN": addresses["gateway"],
            "GATEWAY_GRPC_LISTEN": addresses["grpc"],
            "GATEWAY_TOKENIZERS": addresses["tokenizer"],
            "GATEWAY_COMPUTES": addresses["compute"],
        }
        start("gateway", "gateway", gateway, lambda: _http_ready(ports["gateway"]))
    return figures


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pythons = {extra: _install(extra, Path(folder) / extra) for extra in ("tokenizer", "sampler", "gateway")}
        pythons["compute"] = Path(sys.executable)
        rounds = [_measure_once(pythons) for _ in range(arguments.rounds)]
    services = {
        name: {key: statistics.median(one[name][key] for one in rounds) for key in ("ready_s", "resident_mb")}
        for name in ("tokenizer", "sampler", "gateway")
    }
    for name, figures in services.items():
        print(f"{name}: ready after {figures['ready_s']} s, {figures['resident_mb']} MB resident")
    document = {
        "what": "seconds from start to ready and resident MB, medians; tokenizer, sampler and gateway each in an environment of its extra alone",
        "rounds": arguments.rounds,
        "python": sys.version.split()[0],
        "hardware": describe_hardware(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "services": services,
    }
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
