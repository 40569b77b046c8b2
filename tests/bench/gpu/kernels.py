"""Every kernel on a device: checked against references, timed beside the limit of its memory and arithmetic, and beside torch's own.

`python -m tests.bench.gpu.kernels`: first processes side by side run every kernel once, which compiles them and tells whether they are right;
then one alone measures. A kernel that fails is a row with its error, and the rest goes on. The results file has every row; the table shows
microseconds and the percentage of the limit, which is the larger of bytes over the measured copy bandwidth and operations over the measured
rate of products. `!` = the result is wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from compute_svc.kernels.exact_products import use_exact_products
from tests.bench.gpu.attention_cases import decode_cases, prefill_cases
from tests.bench.gpu.cases import Case, Fatal, Rows, key_of, table
from tests.bench.gpu.ceilings import measure_ceilings
from tests.bench.gpu.expert_cases import expert_cases
from tests.bench.gpu.product_cases import product_cases
from tests.bench.gpu.row_cases import row_cases
from tests.bench.gpu.shapes import LLAMA_8B, TRIAL, Sizes
from tests.environment import describe_environment

_MOST_ATTEMPTS = 5
RESULTS = Path(__file__).parents[1] / "results" / "gpu_kernels.json"

PARTS: dict[str, Callable[[Sizes, torch.device], Iterator[Case]]] = {
    "decode": decode_cases,
    "products-w8a8": lambda sizes, device: product_cases(sizes, device, ("w8a8",)),
    "prefill": prefill_cases,
    "rows": row_cases,
    "products-int4": lambda sizes, device: product_cases(sizes, device, ("int4-g128",)),
    "experts": expert_cases,
    "products-nf4": lambda sizes, device: product_cases(sizes, device, ("nf4-g64",)),
    "products-fp8": lambda sizes, device: product_cases(sizes, device, ("fp8", "fp8-g128")),
    "products-bf16": lambda sizes, device: product_cases(sizes, device, ("bf16",)),
}
"""By importance: what a cut at the end loses comes last."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, measures, writes and prints; 1 if a kernel of ours fails."""
    chosen = _parse(arguments)
    device = torch.device(chosen.device)
    sizes = TRIAL if chosen.trial else LLAMA_8B
    torch.manual_seed(0)
    if device.type == "cuda":
        use_exact_products()
    if chosen.check:
        return _check(chosen, sizes._replace(cold_bytes=0), device)
    began = time.monotonic()
    checked = [] if chosen.no_check else _check_side_by_side(chosen)
    print(f"checked {len(checked)} cases in {time.monotonic() - began:.0f} s", flush=True)
    found = _measure(chosen, sizes, device, checked)
    print("\n".join(["microseconds and percent of the limit", *table(found)]))
    return _failures([*checked, *found])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu.kernels", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--trial", action="store_true", help="small shapes, to see that everything runs")
    parser.add_argument("--check", action="store_true", help="run every kernel once and compare, without timing")
    parser.add_argument("--begin-at", type=int, default=0, help="the first case that --check runs")
    parser.add_argument("--check-s", type=float, default=90.0, help="seconds that checks may take, all parts side by side")
    parser.add_argument("--no-check", action="store_true", help="measure at once: kernels are compiled as they come")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def _check(chosen: argparse.Namespace, sizes: Sizes, device: torch.device) -> int:
    """Runs the cases of one part from some case on; 1 if the device's context has broken."""
    rows = Rows(device, output=chosen.output)
    (part,) = chosen.part
    try:
        with torch.inference_mode():
            rows.add(islice(PARTS[part](sizes, device), chosen.begin_at, None))
    except Fatal:
        return 1
    return 0


def _check_side_by_side(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """A process for every part, for what takes long is compiling, on the CPU; where one breaks or hangs, another goes on behind that case."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(chosen.part)) as pool:
        return [row for rows in pool.map(lambda part: _check_part(part, chosen, Path(folder)), chosen.part) for row in rows]


def _check_part(part: str, chosen: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    end = time.monotonic() + chosen.check_s
    for attempt in range(_MOST_ATTEMPTS):
        output = folder / f"{part}_{attempt}.json"
        output.write_text("[]")
        command = [sys.executable, "-m", "tests.bench.gpu.kernels", "--check", "--device", chosen.device, *["--trial"] * chosen.trial]
        command += ["--part", part, "--begin-at", str(len(found)), "--output", str(output)]
        try:
            status = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=max(1.0, end - time.monotonic()), check=False).returncode
        except subprocess.TimeoutExpired:
            status = -1
        found += json.loads(output.read_text())
        if status == 0:
            return found
        if not found or time.monotonic() >= end:
            break
        # It has ended in the middle of its last case.
        found[-1]["fatal"] = True
    return [*found, {"part": part, "name": "the rest", "load": "", "who": "ours", "failed": "not checked"}]


def _measure(chosen: argparse.Namespace, sizes: Sizes, device: torch.device, checked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    with torch.inference_mode():
        ceilings = measure_ceilings(device)
        rows = Rows(device, ceilings, frozenset(key_of(row) for row in checked if "fatal" in row))
        document: dict[str, Any] = {
            "what": "kernels alone: microseconds of a call, and the percentage of what the ceilings allow: memory by the data sheet, arithmetic as measured",
            **describe_environment(device),
            "is_trial": chosen.trial,
            "ceilings": ceilings.described(),
            "failed_checks": [row for row in checked if "failed" in row],
        }
        print(json.dumps(document["ceilings"]), flush=True)
        for part in chosen.part:
            began = time.monotonic()
            rows.add(PARTS[part](sizes, device))
            print(f"{part}: {time.monotonic() - began:.1f} s", flush=True)
            # After each, so that a run that is stopped keeps what it has.
            chosen.output.parent.mkdir(parents=True, exist_ok=True)
            chosen.output.write_text(json.dumps({**document, "rows": rows.found}, indent=1) + "\n")
    print(chosen.output)
    return rows.found


def _failures(found: Sequence[dict[str, Any]]) -> int:
    """Prints rows of ours that fail; 1 if there are any."""
    failed = {key_of(row): row["failed"] for row in found if "failed" in row}
    for (part, name, load, who), reason in failed.items():
        print(f"FAILED {part} {name} {load} {who}: {reason[:160]}", flush=True)
    return int(any(who in ("ours", "alone", "one order") for _, _, _, who in failed))


if __name__ == "__main__":
    sys.exit(main())
