"""Every format of weights on this CPU: where it comes from, how exactly it is computed, what it costs in quality, and tokens per second.

A format is exact if the same numbers come out as from its weights written out in float32: how far logits are off, in terms of their spread; and whether a
request's bits are the same alone, among 64, in chunks and from a cached prefix, without which nothing is measured. Perplexity is what `python -m tests.bench.number_formats.quality`
measured. Speeds are this engine's own, in a process for each figure, native kernels and torch's operations in turns; medians of some rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from compute_svc.kernels.cpu_features import multiplies_bfloat16
from compute_svc.kernels.native import use_native_kernels
from compute_svc.models.registry import load_model
from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from tests.bench.gpu.device_checks import check_invariance, random_tokens, whole_logits
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "formats.json"
ROOT = Path(__file__).parents[3]
_CPU = torch.device("cpu")
_TOKENS = 100
_BACKENDS: dict[str, Literal["required", "off"]] = {"native": "required", "aten": "off"}


class Format(NamedTuple):
    """One line of the table.

    Attributes:
        source: What such weights are found in.
        options: Of `triserve quantize`; None = the model's own file.
        dtype: What activations are, and weights that are written out.
        activations: See COMPUTE_ACTIVATIONS.
        rounded: Its name in quality.json where activations are rounded, to int8 or bfloat16; None = not measured.
        exact: Its name there where the numbers that its weights stand for are multiplied in float32.
    """

    source: str
    options: tuple[str, ...] | None
    dtype: Literal["float32", "bfloat16"] = "float32"
    activations: Literal["auto", "float"] = "auto"
    rounded: str | None = None
    exact: str | None = None


FORMATS = {
    "float32": Format("safetensors, GGUF F32", None, activations="float", exact="float32"),
    "bfloat16": Format("safetensors, GGUF BF16", None, "bfloat16", "float", rounded="bfloat16"),
    "int8 W8A8": Format("compressed-tensors", ("--weights", "int8"), rounded="int8 W8A8"),
    "int8 W8A8, head too": Format("compressed-tensors", ("--weights", "int8", "--head"), rounded="int8 W8A8, head int8"),
    "int8 g32": Format(
        "compressed-tensors, GPTQ, GGUF Q8_0", ("--weights", "int8", "--group", "32", "--activations", "float"), rounded="int8 g32 A8"
    ),
    "int4 g32": Format(
        "compressed-tensors, GPTQ, AWQ, GGUF Q4_0",
        ("--weights", "int4", "--group", "32", "--activations", "float"),
        rounded="int4 g32 rtn A8",
        exact="int4 g32 rtn",
    ),
    "int4 g128": Format(
        "compressed-tensors, GPTQ, AWQ",
        ("--weights", "int4", "--group", "128", "--activations", "float"),
        rounded="int4 g128 rtn A8",
        exact="int4 g128 rtn",
    ),
    "Q4_1 as the file has it": Format("GGUF", None, rounded="as the file has it, A8", exact="float32"),
    "fp8, written out": Format("compressed-tensors, DeepSeek, Qwen", ("--weights", "fp8", "--activations", "float"), exact="fp8 weights"),
    "nf4, written out": Format("bitsandbytes", ("--weights", "nf4"), exact="nf4"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks, measures and writes the results file and a table beside it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.number_formats.formats", description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS), metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=RESULTS, help="the results file; the table is written beside it")
    chosen = parser.parse_args(arguments)
    model = resolve_model(None, download_from_hub, os.environ).folder
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: _folder(model, FORMATS[name].options, Path(scratch) / str(place)) for place, name in enumerate(chosen.formats)}
        rows: dict[str, dict[str, Any]] = {}
        for name, folder in folders.items():
            for backend in _BACKENDS:
                if FORMATS[name].dtype == "float32" or multiplies_bfloat16():
                    rows[f"{name} on {backend}"] = _checked(FORMATS[name], name, backend, folder)
        for number in range(chosen.rounds):
            for row in rows.values():
                row["runs"].append(_speeds(row, folders[row["format"]], chosen.threads, number))
                _write(chosen.output, rows, chosen.threads)
    print(chosen.output.with_suffix(".md").read_text())


def _folder(model: Path, options: tuple[str, ...] | None, folder: Path) -> Path:
    if options is None:
        return model
    subprocess.run(
        [sys.executable, "-m", "gateway.cli", "quantize", str(model), str(folder), *options], cwd=ROOT, check=True, stdout=sys.stderr
    )
    return folder


def _checked(format_: Format, name: str, backend: str, folder: Path) -> dict[str, Any]:
    """A row without figures.

    Raises:
        AssertionError: Bits depend on the batch.
    """
    use_native_kernels(_BACKENDS[backend])
    model = load_model(folder, dtype=getattr(torch, format_.dtype), device=_CPU, activations=format_.activations)
    invariance = check_invariance(model, promised=True)
    dense = load_model(folder, dtype=torch.float32, device=_CPU, activations="float")
    tokens = random_tokens(model, 1, _TOKENS, seed=1)[0]
    own, exact = whole_logits(model, tokens), whole_logits(dense, tokens)
    row = {
        "format": name,
        "source": format_.source,
        "backend": backend,
        "dtype": format_.dtype,
        "activations": format_.activations,
        "error_of_spread": float((own - exact).square().mean().sqrt() / exact.std()),
        "same_bits_in_any_batch": all(one["equal_bits"] for one in invariance.values()),
        "perplexity": _perplexity(format_.exact if torch.equal(own, exact) else format_.rounded),
        "runs": [],
    }
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def _perplexity(name: str | None) -> float | None:
    measured = json.loads((RESULTS.parent / "quality.json").read_text())["formats"]
    return measured[name]["perplexity"] if name in measured else None


def _speeds(row: Mapping[str, Any], folder: Path, threads: int, seed: int) -> dict[str, float]:
    settings = {
        "COMPUTE_MODEL": str(folder),
        "COMPUTE_DTYPE": row["dtype"],
        "COMPUTE_ACTIVATIONS": row["activations"],
        "COMPUTE_NATIVE_KERNELS": _BACKENDS[row["backend"]],
        "COMPUTE_THREADS": str(threads),
    }
    command = [sys.executable, "-m", "tests.bench.peers.engine_side", json.dumps({"seed": seed})]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    print(row["format"], row["backend"], {name: round(value, 1) for name, value in figures.items()}, file=sys.stderr, flush=True)
    return figures


def _write(path: Path, rows: Mapping[str, dict[str, Any]], threads: int) -> None:
    measured = [row for row in rows.values() if row["runs"]]
    for row in measured:
        row["tokens_per_s"] = {
            column: {"median": round(statistics.median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}
            for column in row["runs"][0]
            if (values := [run[column] for run in row["runs"]])
        }
    told = [{name: value for name, value in row.items() if name != "runs"} | {"rounds": len(row["runs"])} for row in measured]
    document = {"what": "formats of weights on a CPU", **describe_environment(_CPU), "threads": threads, "rows": told}
    path.write_text(json.dumps(document, indent=1) + "\n")
    columns = list(measured[0]["tokens_per_s"])
    lines = [
        f"| format | found in | computed by | off by, of the spread | same bits in any batch | perplexity | {' | '.join(columns)} |",
        "|---" * (6 + len(columns)) + "|",
    ]
    for row in measured:
        perplexity = "not measured" if row["perplexity"] is None else f"{row['perplexity']:.2f}"
        speeds = " | ".join(f"{row['tokens_per_s'][column]['median']:.0f}" for column in columns)
        bits = "yes" if row["same_bits_in_any_batch"] else "no"
        who = f"{row['backend']}, {row['dtype']}"
        lines.append(f"| {row['format']} | {row['source']} | {who} | {row['error_of_spread']:.1e} | {bits} | {perplexity} | {speeds} |")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
