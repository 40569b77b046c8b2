"""How long /health takes while a body of four megabytes, made to cost as much as it can, is read and refused: real processes, one body at a time.

The figures hold what the machine does besides; the line "nothing sent" says how much that is.
"""

from __future__ import annotations

import argparse
import http.client
import json
import platform
import statistics
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pydantic

from gateway.cli.hardware import describe_hardware
from tests.e2e.local_pipeline import Pipeline
from tests.fakes.hostile_bodies import HOSTILE_BODIES

RESULTS = Path(__file__).parents[1] / "results" / "hostile_bodies.json"
_TARGET_MS = 50.0
_PAUSE_S = 0.002
_JSON = {"Content-Type": "application/json"}


class _Poster(threading.Thread):
    """Posts one body and keeps the status."""

    def __init__(self, port: int, route: str, body: bytes) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._route = route
        self._body = body
        self.status = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        connection.request("POST", self._route, self._body, _JSON)
        response = connection.getresponse()
        response.read()
        self.status = response.status
        connection.close()


def _probe(port: int, go_on: Any) -> list[float]:
    """Latencies of /health in milliseconds, one request after another on one connection, as long as `go_on()` and ten times at least."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    took: list[float] = []
    while go_on() or len(took) < 10:
        began = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        took.append((time.perf_counter() - began) * 1000)
        time.sleep(_PAUSE_S)
    connection.close()
    return took


def _figures(took: list[float]) -> dict[str, Any]:
    return {"probes": len(took), "median_ms": round(statistics.median(took), 2), "max_ms": round(max(took), 1)}


def _measure(pipeline: Pipeline, rounds: int) -> list[dict[str, Any]]:
    gateway = pipeline.parts("gateway")[0]
    quiet_until = time.monotonic() + 5
    rows: list[dict[str, Any]] = [{"body": "nothing sent", **_figures(_probe(pipeline.port, lambda: time.monotonic() < quiet_until))}]
    for hostile in HOSTILE_BODIES:
        body = hostile.body()
        took: list[float] = []
        cpu_before = sum(gateway.cpu_times()[:2])
        for _ in range(rounds):
            poster = _Poster(pipeline.port, hostile.route, body)
            poster.start()
            took += _probe(pipeline.port, poster.is_alive)
            poster.join()
            assert poster.status == hostile.status, f"{hostile.name}: {poster.status}"
        cpu_ms = (sum(gateway.cpu_times()[:2]) - cpu_before) * 1000 / rounds
        rows.append({"body": hostile.name, "status": hostile.status, **_figures(took), "cpu_ms": round(cpu_ms)})
    return rows


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="what else the machine was doing, for the results file")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    pipeline = Pipeline(["--dtype", "float32"])
    pipeline.start()
    try:
        rows = _measure(pipeline, arguments.rounds)
        resident_mb = psutil.Process(pipeline.parts("gateway")[0].pid).memory_info().rss / 1e6
    finally:
        pipeline.stop()
    measured = rows[1:]
    worst = max(measured, key=lambda row: row["max_ms"])
    document = {
        "what": "latency of /health while bodies of 4 MiB are read and refused, one at a time",
        "note": arguments.note,
        "rounds": arguments.rounds,
        "target_max_ms": _TARGET_MS,
        "bodies": len(measured),
        "within_target": sum(row["max_ms"] < _TARGET_MS for row in measured),
        "worst": worst,
        # Of the whole gateway, for one body: no wait for it can be longer, whatever else the machine does.
        "most_cpu_ms": max(row["cpu_ms"] for row in measured),
        "nothing_sent": rows[0],
        "gateway_resident_mb": round(resident_mb),
        "rows": measured,
        "aiohttp": aiohttp.__version__,
        "pydantic": pydantic.VERSION,
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({name: value for name, value in document.items() if name != "rows"}, indent=1))


if __name__ == "__main__":
    main()
