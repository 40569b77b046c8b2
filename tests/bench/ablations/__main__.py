"""What each part of the design is worth: one switch, on and off in turns, in one table beside the claim that it tests.

`python -m tests.bench.ablations` writes tests/bench/results/ablations.json and a table beside it. What must be right is checked before anything is
measured: the same tokens where the switch promises that. Ablations that are not run keep their rows.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from tests.bench.ablations.comparison import Comparison, as_markdown
from tests.bench.ablations.draw_place import draw_place
from tests.bench.ablations.engines import Setup
from tests.bench.ablations.kv_pool import kv_format, reservation
from tests.bench.ablations.merge_step import merge_step
from tests.bench.ablations.pipelining import pipelining
from tests.bench.ablations.weights import int4, native_kernels, w8a8
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "ablations.json"
TINY_MODEL = Path(__file__).parents[2] / "tiny_model"
ABLATIONS: dict[str, Callable[[Setup], Iterator[Comparison]]] = {
    "merge_step": merge_step,
    "reservation": reservation,
    "kv_format": kv_format,
    "w8a8": w8a8,
    "int4": int4,
    "pipelining": pipelining,
    "native_kernels": native_kernels,
    "draw_place": draw_place,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes results file and table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ablations", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(ABLATIONS), default=list(ABLATIONS), metavar="ABLATION", help=", ".join(ABLATIONS)
    )
    parser.add_argument("--model", type=Path, help="a folder; default: the one `triserve up` serves")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="where it is not what is switched")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes of a tiny model, to see that it works; the figures mean nothing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    usual = TINY_MODEL if chosen.quick else None
    folder = chosen.model or usual or resolve_model(None, download_from_hub, os.environ).folder
    for name in chosen.only:
        began, before_s = time.monotonic(), _busy_s()
        with tempfile.TemporaryDirectory() as scratch:
            setup = Setup(folder, getattr(torch, chosen.dtype), chosen.rounds, chosen.quick, Path(scratch))
            rows = []
            for comparison in ABLATIONS[name](setup):
                rows.append(comparison.as_json())
                print(f"{time.monotonic() - began:.0f} s: {comparison.case}, {comparison.on}: {comparison.ratio}", flush=True)
        took_s = time.monotonic() - began
        about = {
            "model": folder.name,
            "dtype": chosen.dtype,
            "rounds": chosen.rounds,
            "is_quick": chosen.quick,
            "took_s": round(took_s, 1),
            "cores_used_by_all": round((_busy_s() - before_s) / took_s, 2),
            **describe_environment(torch.device("cpu")),
        }
        _keep(chosen.output, name, {"about": about, "rows": rows})
        print(f"{name}, {took_s:.0f} s", flush=True)


def _busy_s() -> float:
    """CPU time of everything on the machine, what its host took from it included."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _keep(path: Path, name: str, found: dict[str, Any]) -> None:
    """Puts an ablation's rows into the results file and writes the table of all anew."""
    known: dict[str, Any] = json.loads(path.read_text())["ablations"] if path.exists() else {}
    known[name] = found
    ordered = {one: known[one] for one in ABLATIONS if one in known}
    what = "one switch at a time, on and off in turns; ratios are of the two runs of a round, above 1 where on is better"
    path.write_text(json.dumps({"what": what, "ablations": ordered}, indent=1) + "\n")
    lines = [
        f"{what[0].upper()}{what[1:]}. Medians; extremes in brackets.\n",
        as_markdown([row for one in ordered.values() for row in one["rows"]]),
        *(_told(one, ordered[one]["about"]) for one in ordered),
    ]
    path.with_suffix(".md").write_text("\n".join(lines))


def _told(name: str, about: dict[str, Any]) -> str:
    hardware = ", ".join(str(value) for value in about["hardware"].values()) if isinstance(about["hardware"], dict) else about["hardware"]
    model = f"{about['model']} in {about['dtype']}, {about['rounds']} rounds"
    return f"- {name.replace('_', ' ')}: {model}, {hardware}, torch {about['torch']}, Python {about['python']}, {about['finished_at']}"


if __name__ == "__main__":
    main()
