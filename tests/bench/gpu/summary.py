"""The results files of a run on a GPU as a few lines: `python -m tests.bench.gpu.summary FOLDER`."""

from __future__ import annotations

import json
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
    for path in sorted(folder.glob("gpu_baseline_*.json")):
        document = json.loads(path.read_text())
        yield f"{path.stem}: {document['model']} {document['weight_format']}, {document['kernels'] or 'no kernels of note'}"
        yield from (f"  {_decode(row)}" for row in document["decode"])
        yield from (f"  {row['prompts']}x{row['prompt_tokens']} {row['kv']}: {_rate(row)} prefill tokens/s" for row in document["prefill"])
    parts = folder / "gpu_parts.log"
    if parts.exists():
        yield from parts.read_text().splitlines()


def _decode(row: dict[str, Any]) -> str:
    limit = row["limit"]
    by_sheet = f", {limit['percent_by_data_sheet']} % by the data sheet" if "percent_by_data_sheet" in limit else ""
    return f"{row['requests']}x{row['context_tokens']} {row['kv']}: {_rate(row)} tokens/s, {limit['step_ms']} ms, {limit['percent']} % of the limit{by_sheet}"


def _rate(row: dict[str, Any]) -> float:
    return float(row["engine"]["tokens_per_s"]["median"])


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]))))
