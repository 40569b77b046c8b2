"""How near the targets a run on a GPU came, and what each switch is worth there: `python -m tests.bench.gpu.comparisons FOLDER`.

Reads the results files of a folder and writes gpu_comparisons.md there. What was not measured is said to be so; what was measured on
different devices is not compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = "gpu_comparisons.md"
_NOT_MEASURED = "not measured"
_NUMBERS, _CODES = "bfloat16", "int8-g64"
_8B, _8B_INT8, _1B = "gpu_baseline_8b", "gpu_baseline_8b_int8", "gpu_baseline_1b"


class Source(NamedTuple):
    """Where a figure stands.

    Attributes:
        file: Of results, without its ending.
        kv: The format of keys and values.
    """

    file: str
    kv: str = _NUMBERS


class Target(NamedTuple):
    """A share of a limit that is to be reached.

    Attributes:
        what: Is computed.
        source: Of the figure.
        requests: That decode at once; None = the better of all prompts.
        percent: Of the limit.
    """

    what: str
    source: Source
    requests: int | None
    percent: int


class Switch(NamedTuple):
    """One thing that differs between two runs.

    Attributes:
        name: What it is.
        off: The other way.
        on: The way whose worth is claimed.
        claims: What is said of it, by requests at once.
    """

    name: str
    off: Source
    on: Source
    claims: Mapping[int, str] = {}


TARGETS = (
    Target("8B, bfloat16, 1 request", Source(_8B), 1, 75),
    Target("8B, W8A8, 1 request", Source(_8B_INT8), 1, 68),
    Target("8B, bfloat16, 64 requests", Source(_8B), 64, 65),
    Target("8B, bfloat16, 256 requests", Source(_8B), 256, 65),
    Target("8B, W8A8 and int8 KV, 256 requests", Source(_8B_INT8, _CODES), 256, 60),
    Target("8B, bfloat16, prompts", Source(_8B), None, 60),
    Target("1B, bfloat16, 1 request", Source(_1B), 1, 70),
)
ATTENTION_PERCENT = 85
_LEVEL = "PPL: int4 ahead below 64, level at 128"
SWITCHES = (
    Switch("W8A8", Source(_8B), Source(_8B_INT8), {1: "limit +86 %", 64: "limit +42 %", 256: "limit +16 %"}),
    Switch("KV in int8-g64", Source(_8B), Source(_8B, _CODES), {256: "limit +35 %"}),
    Switch("KV in int8-g64, weights W8A8", Source(_8B_INT8), Source(_8B_INT8, _CODES)),
    Switch("CUDA graphs and run-ahead", Source("gpu_no_graphs"), Source(_8B)),
    Switch("run-ahead", Source("gpu_no_run_ahead"), Source(_8B)),
    Switch("int4-g128 in place of W8A8", Source(_8B_INT8), Source("gpu_baseline_8b_int4"), dict.fromkeys((1, 16, 64, 128), _LEVEL)),
    Switch("fp8 in place of W8A8", Source(_8B_INT8), Source("gpu_baseline_8b_fp8")),
    Switch("equal bits whatever the batch", Source(_8B), Source("gpu_invariant")),
)


def lines(folder: Path) -> Iterator[str]:
    """Tables in Markdown."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("gpu_*.json"))}
    yield from ("| target | reach | measured | tokens/s | device |", "|---" * 5 + "|")
    for target in TARGETS:
        yield _row(target.what, f"{target.percent} %", *_reached(target, found))
    for name, cells in _attention(found.get("gpu_kernels", {})):
        yield _row(f"decode attention, {name}", f"{ATTENTION_PERCENT} %", *cells)
    yield from ("", "| switch | requests | off, tokens/s | on, tokens/s | on / off | claim | device |", "|---" * 7 + "|")
    for switch in SWITCHES:
        yield from (_row(switch.name, *cells) for cells in _worth(switch, found))
    if "gpu_merge_step" in found:
        yield from ("", *found["gpu_merge_step"]["table"], "", _device(found["gpu_merge_step"]))


def main(folder: Path) -> None:
    """Writes and prints."""
    text = "\n".join(lines(folder)) + "\n"
    (folder / RESULTS).write_text(text)
    print(text, end="")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _reached(target: Target, found: Mapping[str, Any]) -> tuple[str, str, str]:
    document = found.get(target.source.file, {})
    rows = document.get("prefill" if target.requests is None else "decode", ())
    rows = [row for row in rows if row["kv"] == target.source.kv and target.requests in (None, row.get("requests"))]
    if not rows:
        return _NOT_MEASURED, "", ""
    best = max(rows, key=_rate)
    share = f"{best['limit']['percent']} %" if "limit" in best else "limit not known"
    return share, f"{_rate(best):,.0f}", _device(document)


def _attention(document: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """The share of the bandwidth at each load, by the format of keys and values."""
    rows = [row for row in document.get("rows", ()) if row["part"] == "decode" and row["who"] == "ours" and "percent_of_ceiling" in row]
    for name in (_NUMBERS, _CODES):
        shares = [f"{row['load']}: {row['percent_of_ceiling']:.0f} %" for row in rows if row["name"] == name and "failed" not in row]
        yield name, (", ".join(shares), "", _device(document)) if shares else (_NOT_MEASURED, "", "")


def _worth(switch: Switch, found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    off, on = (_rates(source, found) for source in (switch.off, switch.on))
    both = [size for size in off if size in on]
    if not both:
        yield "", "", "", _NOT_MEASURED, "; ".join(dict.fromkeys(switch.claims.values())), ""
        return
    devices = {_device(found[source.file]) for source in (switch.off, switch.on)}
    for size in both:
        ratio = f"{on[size] / off[size]:.2f}" if len(devices) == 1 else "different devices"
        yield str(size), f"{off[size]:,.0f}", f"{on[size]:,.0f}", ratio, switch.claims.get(size, ""), ", ".join(sorted(devices))


def _rates(source: Source, found: Mapping[str, Any]) -> dict[int, float]:
    rows = found[source.file]["decode"] if source.file in found else []
    return {row["requests"]: _rate(row) for row in rows if row["kv"] == source.kv}


def _rate(row: Mapping[str, Any]) -> float:
    return float(row["engine"]["tokens_per_s"]["median"])


def _device(document: Mapping[str, Any]) -> str:
    return f"{document['device']['name']}, torch {document['torch']}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
