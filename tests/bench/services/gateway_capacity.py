"""What one core of a gateway carries: requests per second, and streamed tokens per second, from the CPU time that they take.

The gateway is a real process with its defaults; tokenizer, compute and clients are others that cost little. Nothing is asserted of time. CPU time is
that of the gateway's process alone, so that whoever shares the machine's cores counts for little; the rates that were reached stand beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from gateway.cli.hardware import describe_hardware
from tests.bench.services.closed_loop import Load
from tests.bench.services.gateway_stages import answer
from tests.bench.summary import summary_of
from tests.e2e.local_pipeline import wait_until
from tests.ports import free_port

ROOT = Path(__file__).parents[3]
RESULTS = Path(__file__).parents[1] / "results" / "gateway_capacity.json"


class Kind(NamedTuple):
    """A kind of load.

    Attributes:
        name: In the results.
        stream: Whether answers are streamed.
        num_requests: Measured ones.
        connections: Requests under way at once.
        max_tokens: Of each answer.
        step_ms: From one token of an answer to the next, where the gateway takes them so fast.
    """

    name: str
    stream: bool
    num_requests: int
    connections: int
    max_tokens: int
    step_ms: float


# All answers that are under way get a token in each step, so that frames are full; more are offered than one core takes in the last.
KINDS = (
    Kind("requests", stream=False, num_requests=6000, connections=64, max_tokens=1, step_ms=0.0),
    Kind("whole answers", stream=False, num_requests=4096, connections=256, max_tokens=64, step_ms=10.0),
    Kind("short streams", stream=True, num_requests=4096, connections=256, max_tokens=64, step_ms=10.0),
    Kind("long streams", stream=True, num_requests=512, connections=256, max_tokens=512, step_ms=20.0),
    Kind("more streams than it can keep up with", stream=True, num_requests=2048, connections=1024, max_tokens=256, step_ms=15.0),
)


@contextmanager
def _stages(rows: int, step_ms: float) -> Iterator[dict[str, str]]:
    command = [sys.executable, "-m", "tests.bench.services.gateway_stages", "--rows", str(rows), "--step-ms", str(step_ms)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None, "it is a pipe"
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _gateway(stages: dict[str, str], log: Path) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    settings = {
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "GATEWAY_GRPC_LISTEN": "127.0.0.1:0",
        "GATEWAY_TOKENIZERS": stages["tokenizer"],
        "GATEWAY_COMPUTES": stages["compute"],
    }
    with log.open("w") as lines:
        process = subprocess.Popen([sys.executable, "-m", "gateway"], cwd=ROOT, env={**os.environ, **settings}, stderr=lines)
        try:
            wait_until(lambda: "connected to compute" in log.read_text() and "connected to tokenizer" in log.read_text(), "it is connected")
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def _ask(load: Load) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.services.closed_loop", json.dumps(load._asdict())]
    counts: dict[str, float] = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    return counts


def _run(kind: Kind, rows: int, log: Path) -> dict[str, float]:
    """One run of a kind of load, in fresh processes."""
    with _stages(rows, kind.step_ms) as stages, _gateway(stages, log) as (port, process):
        load = Load(port, kind.stream, kind.connections, kind.connections, kind.max_tokens, answer(kind.max_tokens))
        _ask(load)
        before = process.cpu_times()
        counts = _ask(load._replace(num_requests=kind.num_requests))
        after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    tokens = kind.num_requests * kind.max_tokens
    return {
        "requests_per_core_s": kind.num_requests / cpu_s,
        "tokens_per_core_s": tokens / cpu_s,
        "cpu_us_per_request": 1e6 * cpu_s / kind.num_requests,
        "cpu_us_per_token": 1e6 * cpu_s / tokens,
        "requests_per_s": kind.num_requests / counts["seconds"],
        "tokens_per_s": tokens / counts["seconds"],
        # The first event of a stream is no token's, and the last one has a finish reason besides.
        "tokens_per_event": tokens / (counts["events"] - kind.num_requests) if counts["events"] else 0.0,
        "busy_cores": cpu_s / counts["seconds"],
        "ttft_ms_p50": counts["ttft_ms_p50"],
        "ttft_ms_p99": counts["ttft_ms_p99"],
    }


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64, help="most rows of a frame")
    parser.add_argument("--kinds", nargs="+", default=[kind.name for kind in KINDS])
    parser.add_argument("--log", type=Path, default=Path("/dev/shm/triserve-gateway-capacity.log"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    kinds: dict[str, Any] = {}
    for kind in [one for one in KINDS if one.name in arguments.kinds]:
        summary = summary_of([_run(kind, arguments.rows, arguments.log) for _ in range(arguments.rounds)])
        kinds[kind.name] = {**kind._asdict(), **summary}
        print(
            f"{kind.name}: {summary['requests_per_core_s']['median']:.0f} requests, {summary['tokens_per_core_s']['median']:.0f} tokens"
            f" a core and second; {summary['cpu_us_per_request']['median']:.0f} us a request, {summary['cpu_us_per_token']['median']:.1f} us a token;"
            f" {summary['busy_cores']['median']:.2f} cores busy, {summary['tokens_per_event']['median']:.2f} tokens an event",
            flush=True,
        )
    document = {
        "what": "CPU time of the gateway's process, for requests of one token and for tokens of answers whole and streamed",
        "triserve": version("triserve"),
        "aiohttp": version("aiohttp"),
        "grpcio": version("grpcio"),
        "uvloop": version("uvloop"),
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": arguments.rounds,
        "rows": arguments.rows,
        "kinds": kinds,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
