"""What the services cost: `triserve bench` against `triserve up` (HTTP to HTTP) beside the same engine in one process.

The engine alone is greedy; what is served is measured greedy and at temperature 1, as clients send by default. Both compute the same requests of the same seed, in turns on the same machine, each run in fresh processes; every answer's length is checked
before anything is reported. Writes medians and spread to a results file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gateway.cli.hardware import describe_hardware
from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from tests.e2e.local_pipeline import Pipeline

ROOT = Path(__file__).parents[3]
RESULTS = Path(__file__).parents[1] / "results" / "service_overhead.json"
MODEL = ROOT / "tests" / "tiny_model"


def _workload(arguments: argparse.Namespace, concurrency: int) -> list[str]:
    requests = max(arguments.requests, concurrency) if concurrency > 1 else arguments.requests // 4
    return [
        *("--requests", str(requests), "--concurrency", str(concurrency), "--seed", str(arguments.seed)),
        *("--max-input", str(arguments.max_input), "--max-output", str(arguments.max_output)),
    ]


def _in_process(arguments: argparse.Namespace, concurrency: int) -> dict[str, float]:
    command = [
        sys.executable,
        str(ROOT / "tests/bench/services/in_process.py"),
        "--model",
        str(arguments.model),
        "--dtype",
        arguments.dtype,
    ]
    command += ["--threads", str(arguments.threads), *_workload(arguments, concurrency)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _served(arguments: argparse.Namespace, concurrency: int, temperature: float) -> dict[str, float]:
    pipeline = Pipeline(
        ["--dtype", arguments.dtype, "--model", str(arguments.model)], environment={"COMPUTE_THREADS": str(arguments.threads)}
    )
    pipeline.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "figures.json"
            bench = [sys.executable, "-m", "gateway.cli", "bench", "--url", pipeline.url]
            warm_up = [
                "--requests",
                str(concurrency),
                "--concurrency",
                str(concurrency),
                "--max-input",
                "64",
                "--max-output",
                "16",
                "--seed",
                "1",
            ]
            subprocess.run([*bench, *warm_up], cwd=ROOT, capture_output=True, check=True)
            bench += ["--temperature", str(temperature)]
            subprocess.run([*bench, *_workload(arguments, concurrency), "--output", str(output)], cwd=ROOT, capture_output=True, check=True)
            figures = json.loads(output.read_text())["figures"]
    finally:
        pipeline.stop()
    assert figures["completed"] == figures["num_requests"], "every request is answered before anything is reported"
    return {
        "output_tokens_per_s": figures["output_tokens_per_s"],
        "ttft_ms_p50": figures["ttft_ms"]["p50"],
        "output_tokens": figures["output_tokens"],
    }


def _summary(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    summary = {}
    for name in ("output_tokens_per_s", "ttft_ms_p50"):
        values = [run[name] for run in runs]
        summary[name] = {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}
    return summary


def _compare(arguments: argparse.Namespace, concurrency: int) -> dict[str, Any]:
    alone, served, sampled = [], [], []
    for round_number in range(arguments.rounds):
        alone.append(_in_process(arguments, concurrency))
        served.append(_served(arguments, concurrency, 0.0))
        sampled.append(_served(arguments, concurrency, 1.0))
        assert alone[-1]["output_tokens"] == served[-1]["output_tokens"] == sampled[-1]["output_tokens"], (
            "all gave answers of the same lengths"
        )
        print(
            f"concurrency {concurrency} round {round_number + 1}: in process {alone[-1]}, served {served[-1]}, sampled {sampled[-1]}",
            flush=True,
        )
    in_process, pipeline, drawn = _summary(alone), _summary(served), _summary(sampled)
    throughput = pipeline["output_tokens_per_s"]["median"] / in_process["output_tokens_per_s"]["median"]
    added = pipeline["ttft_ms_p50"]["median"] - in_process["ttft_ms_p50"]["median"]
    return {
        "concurrency": concurrency,
        "in_process": in_process,
        "served": pipeline,
        "served_at_temperature_1": drawn,
        "throughput_lost_percent": round(100 * (1 - throughput), 1),
        "ttft_added_ms": round(added, 2),
        "sampled_of_greedy": round(drawn["output_tokens_per_s"]["median"] / pipeline["output_tokens_per_s"]["median"], 3),
    }


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="a model folder; smollm2 = the one `triserve up` serves by default")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--max-input", type=int, default=512)
    parser.add_argument("--max-output", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if str(arguments.model) == "smollm2":
        arguments.model = resolve_model(None, download_from_hub, os.environ).folder
    comparisons = [_compare(arguments, concurrency) for concurrency in arguments.concurrency]
    arguments.output.parent.mkdir(exist_ok=True)
    document = {
        "what": "output tokens per second and median TTFT, triserve bench over HTTP beside the same engine in one process",
        "triserve": version("triserve"),
        "torch": version("torch"),
        "grpcio": version("grpcio"),
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {name: str(value) for name, value in vars(arguments).items() if name not in ("output", "model")},
        "model": arguments.model.name,
        "comparisons": comparisons,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    for one in comparisons:
        print(
            f"concurrency {one['concurrency']}: throughput lost {one['throughput_lost_percent']} %, TTFT added {one['ttft_added_ms']} ms, sampled / greedy {one['sampled_of_greedy']}"
        )


if __name__ == "__main__":
    main()
