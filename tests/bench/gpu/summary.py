"""The results files of a run on a GPU as a few lines: `python -m tests.bench.gpu.summary FOLDER`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.gpu.cases import table


def lines(folder: Path) -> Iterator[str]:
    """What is in a folder, the most important last."""
    for path in sorted(folder.glob("gpu_step_profile.json")):
        for size in json.loads(path.read_text())["sizes"]:
            shares = ", ".join(f"{part} {value:g}" for part, value in size["parts_ms"].items())
            yield f"profile of {size['requests']}: {size['step_ms']:.3f} ms; {shares}"
    kernels = folder / "gpu_kernels.json"
    if kernels.exists():
        document = json.loads(kernels.read_text())
        yield f"kernels: microseconds, percent of the limit {json.dumps(document['ceilings'])}"
        yield from table(document["rows"])
    for path in sorted(folder.glob("gpu_fast_decode.json")):
        for row in json.loads(path.read_text())["rows"]:
            yield f"fast decode {row['shape']} {row['requests']} requests: {row.get('tokens_per_s', row.get('failed'))} tokens/s"
    for path in sorted(
        [
            *folder.glob("gpu_baseline_*.json"),
            *folder.glob("gpu_fetch_ahead_*.json"),
            *folder.glob("gpu_no_*.json"),
            *folder.glob("gpu_invariant.json"),
        ]
    ):
        document = json.loads(path.read_text())
        yield f"{path.stem}: {document['model']} {document['weight_format']}, {document['kernels'] or 'no kernels of note'}"
        for kv in dict.fromkeys(row["kv"] for row in document["decode"]):
            yield f"  {kv}: " + "; ".join(_decode(row) for row in document["decode"] if row["kv"] == kv)
            yield "    prefill " + "; ".join(_prefill(row) for row in document["prefill"] if row["kv"] == kv)
    parts = folder / "gpu_parts.log"
    if parts.exists():
        yield from (line for line in parts.read_text().splitlines() if not re.match(r"== triton_\d+: ok", line))


def _decode(row: dict[str, Any]) -> str:
    limit = row["limit"]
    load = f"{row['requests']}x{row['context_tokens']}"
    return f"{load} {_rate(row):.0f} tokens/s {limit['step_ms']:.2f} ms {limit['percent']:.0f} %"


def _prefill(row: dict[str, Any]) -> str:
    return f"{row['prompts']}x{row['prompt_tokens']} {_rate(row):.0f} tokens/s"


def _rate(row: dict[str, Any]) -> float:
    return float(row["engine"]["tokens_per_s"]["median"])


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]))))
