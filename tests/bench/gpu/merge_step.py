"""Steps that hold prompts and answers against prompts for which every answer stops, on one device: `python -m tests.bench.gpu.merge_step`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.bench.ablations.comparison import as_markdown
from tests.bench.ablations.merge_step import AskedFor, compare_merge_step
from tests.bench.gpu.random_model import SHAPES, RandomWeights, build_random
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "gpu_merge_step.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes; lengths are those of the lengths file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu.merge_step", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--requests", type=int, default=256, help="of a run")
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--longest", type=int, default=1024, help="tokens of a prompt, and of an answer a quarter")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    model = build_random(RandomWeights(chosen.shape, device), torch.bfloat16, device)
    asked = AskedFor(chosen.requests, chosen.longest, max(1, chosen.longest // 4), chosen.at_once, step_budget_tokens=2048)
    rows = []
    for comparison in compare_merge_step(model, asked, chosen.rounds, has_equal_bits=device.type == "cpu"):
        rows.append(comparison.as_json())
        print(f"{comparison.case}, {comparison.figure}: {comparison.ratio}", flush=True)
    document = {
        "what": "requests that come over time, decoded while prompts are computed and not; greedy, medians and extremes of rounds in turns",
        **describe_environment(device),
        "model": chosen.shape,
        "rounds": chosen.rounds,
        "rows": rows,
        "table": as_markdown(rows).splitlines(),
    }
    chosen.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
