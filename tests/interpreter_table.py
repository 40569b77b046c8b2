"""python -m tests.interpreter_table: every kernel of the GPU's bench in Triton's interpreter beside its reference, by kernel, dtype and shape.

Writes tests/bench/results/interpreter.json; what `python -m tests.ahead_of_time` is to compiling, this is to what kernels compute. Takes seconds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch

from tests.bench.gpu.cases import Rows
from tests.bench.gpu.kernels import PARTS
from tests.bench.gpu.shapes import TRIAL
from tests.environment import describe_environment
from tests.pretend_cuda import pretend_cuda

RESULTS = Path(__file__).parent / "bench" / "results" / "interpreter.json"
_OURS = ("ours", "alone", "one order", "kernel")


def table() -> Iterator[dict[str, Any]]:
    """A row for each case of ours: what and on what, the relative error, and why it fails if it does. Not those of torch's kernels beside them."""
    torch.manual_seed(0)
    for cases in PARTS.values():
        with pretend_cuda() as pretended, torch.inference_mode():
            rows = Rows(pretended.device)
            rows.add(case for case in cases(TRIAL, pretended.device) if case.who in _OURS)
        yield from rows.found


def main() -> int:
    """Writes and prints; returns 1 if a kernel fails."""
    rows = list(table())
    for row in rows:
        print(f"{row['part']:9} {row['name']:24} {row['load']:8} {row['who']:10} {row.get('error', '')} {row.get('failed', '')}")
    document = {
        "what": "kernels in Triton's interpreter beside their references: relative error",
        **describe_environment(torch.device("cpu")),
        "sizes": str(TRIAL),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
