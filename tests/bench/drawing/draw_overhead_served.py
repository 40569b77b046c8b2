"""What it costs to sample, through all services: `triserve bench` against a pipeline whose compute replica has a model of a fixed step time.

The same requests greedy and at temperature 1, in turns, on SmolLM2's tokenizer. Writes a results file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gateway.cli.local.part import Part
from tests.bench.services.whole_pipeline import ROOT, plan_one_of_each, running
from tests.environment import describe_environment
from tests.ports import free_port

RESULTS = Path(__file__).parents[1] / "results" / "draw_overhead_served.json"
_TEMPERATURES = {"greedy": 0.0, "temperature 1": 1.0}


def fixed_step_parts(port: int, runtime: Path, *, step_ms: float, width: int, draw: str) -> list[Part]:
    """Parts of a pipeline over a model of a fixed step time.

    Args:
        port: Of the gateway's HTTP.
        runtime: A folder of its own, for its sockets.
        step_ms: What a step takes.
        width: Number of logits of a row.
        draw: COMPUTE_DRAW.
    """
    step = {"FIXED_STEP_MS": str(step_ms), "FIXED_STEP_WIDTH": str(width), "COMPUTE_DRAW": draw}
    parts = plan_one_of_each(port, runtime, step)
    command = (sys.executable, "-m", "tests.bench.engine.fixed_step")
    return [replace(part, command=command) if part.name == "compute" else part for part in parts]


def served_tokens_per_s(port: int, concurrency: int, temperature: float) -> float:
    """Output tokens per second of requests that are all answered."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "gateway.cli", "bench", "--url", f"http://127.0.0.1:{port}", "--output", str(output)]
        command += ["--requests", str(max(4, 2 * concurrency)), "--concurrency", str(concurrency), "--temperature", str(temperature)]
        command += ["--max-input", "32", "--max-output", "128", "--seed", "0"]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        figures = json.loads(output.read_text())["figures"]
    assert figures["completed"] == figures["num_requests"], "every request is answered before anything is reported"
    return float(figures["output_tokens_per_s"])


def _measure(arguments: argparse.Namespace, port: int) -> list[dict[str, Any]]:
    comparisons = []
    for concurrency in arguments.concurrency:
        runs: dict[str, list[float]] = {name: [] for name in _TEMPERATURES}
        served_tokens_per_s(port, concurrency, 1.0)
        for _ in range(arguments.rounds):
            for name, temperature in _TEMPERATURES.items():
                runs[name].append(served_tokens_per_s(port, concurrency, temperature))
        medians = {name: statistics.median(values) for name, values in runs.items()}
        comparison = {
            "concurrency": concurrency,
            "tokens_per_s": {
                name: {"median": round(medians[name], 1), "min": round(min(values), 1), "max": round(max(values), 1)}
                for name, values in runs.items()
            },
            "sampled_of_greedy": round(medians["temperature 1"] / medians["greedy"], 4),
        }
        print(comparison, flush=True)
        comparisons.append(comparison)
    return comparisons


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--width", type=int, default=49152, help="number of logits; at least the tokenizer's")
    parser.add_argument("--draw", choices=["device", "service"], default="device")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as runtime:
        port = free_port()
        parts = fixed_step_parts(port, Path(runtime), step_ms=arguments.step_ms, width=arguments.width, draw=arguments.draw)
        with running(parts):
            comparisons = _measure(arguments, port)
    document = {
        "what": "output tokens per second through all services over a model whose step takes a fixed time, sampled and greedy",
        **describe_environment(torch.device("cpu")),
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "comparisons": comparisons,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
