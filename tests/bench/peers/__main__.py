"""This engine beside llama.cpp and transformers on one machine: prefill, decode and service over HTTP, in every format each has, in turns.

The weights are one model's, of a GGUF file, in llama.cpp's formats by its own program. Checked first: greedy answers of all beside those of transformers in
float32. Then rounds, in each of which everybody is measured once, in processes of their own, never two at once; the machine is looked at before and over each
measurement, and how much of it others used stands beside the figures. Writes medians, spread, ratios to llama.cpp's best in each column, and a table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from tests.bench.peers import llama_cpp
from tests.bench.peers.contender import (
    CONTEXT_TOKENS,
    DECODE_SIZES,
    DECODE_STEPS,
    PREFILL_TOKENS,
    THREADS,
    Contender,
    Figures,
    ServedLoad,
    decode_column,
    name_of,
    prefill_column,
)
from tests.bench.peers.llama_cpp import LlamaFormat
from tests.bench.peers.ours import QUANTISATIONS, QUANTISED, parse_format, vocabulary_of
from tests.bench.peers.quiet import QUIET_CORES, Others, Watch
from tests.bench.peers.rival import TransformersFormat
from tests.bench.peers.table import Row, as_markdown, make_row, ratios
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "peers.json"
COMPUTED, SERVED = "computed", "served"
_OURS = [
    "float32=:COMPUTE_DTYPE=float32,COMPUTE_ACTIVATIONS=float",
    "bfloat16=:COMPUTE_DTYPE=bfloat16,COMPUTE_ACTIVATIONS=float",
    # Keys and values of 16 bits, as llama.cpp has them.
    "as the file has it=:COMPUTE_KV_FORMAT=bfloat16",
    *(f"{name}={QUANTISED}{name}:COMPUTE_KV_FORMAT=bfloat16" for name in QUANTISATIONS),
]
# Formats that round nothing but the order of sums, and how far below the likeliest logit their tokens may be for that.
_EXACT = ("F32", "float32")
_ROUNDING = 0.05
_ANSWER_TOKENS = 32
# Threads that wait for each other make a figure on a busy machine a tenth of what it is on a quiet one.
_ATTEMPTS = 3
_TEXTS = (
    "The history of bread begins long before people wrote anything down. The first",
    "Water boils at a lower temperature on a mountain because",
    "In the morning the old fisherman walked down to the harbour and",
    "A prime number is a whole number greater than one that",
    "To change a flat tyre, first loosen the nuts, then",
    "The three largest planets of the solar system are",
)


class Bench:
    """All runs.

    Args:
        contenders: In the order of their turns.
        parts: What is run of each.
        watch: Looks at the machine.
    """

    def __init__(self, contenders: Sequence[Contender], parts: dict[str, Callable[[Contender, int], Figures]], watch: Watch) -> None:
        self._contenders = contenders
        self._parts = parts
        self._watch = watch
        self.figures: dict[str, dict[str, list[Figures]]] = {name_of(one): {} for one in contenders}
        self.others: list[dict[str, Any]] = []

    def round(self, number: int) -> None:
        """Measures everybody once."""
        for contender in self._contenders:
            for part, run in self._parts.items():
                if part != COMPUTED and not contender.serves:
                    continue
                figures, others = self._measured(run, contender, number)
                self.figures[name_of(contender)].setdefault(part, []).append(figures)
                self.others.append({"round": number, "contender": name_of(contender), "part": part, **others._asdict()})
                shown = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
                noise = "" if others.are_quiet else f"; NOT QUIET: others used {others.during:.2f} cores"
                print(f"round {number + 1}, {name_of(contender)}: {shown}{noise}", flush=True)

    def _measured(self, run: Callable[[Contender, int], Figures], contender: Contender, number: int) -> tuple[Figures, Others]:
        """Measured again where others used the machine meanwhile, as often as is worth it."""
        for _ in range(_ATTEMPTS):
            with self._watch.measuring():
                figures = run(contender, number)
            if self._watch.others.are_quiet:
                break
        return figures, self._watch.others

    def rows(self) -> list[Row]:
        """What was measured of each."""
        return [make_row(one.maker, one.format, self.figures[name_of(one)]) for one in self._contenders if self.figures[name_of(one)]]


def check(contenders: Sequence[Contender], reference: TransformersFormat) -> dict[str, Any]:
    """Everybody's greedy answers beside the reference's.

    Raises:
        AssertionError: A format that rounds nothing answers something that rounding does not explain.
    """
    tokenizer = Tokenizer.from_file(str(reference.folder / "tokenizer.json"))
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in _TEXTS]
    answers = {name_of(one): one.answers(prompts, _ANSWER_TOKENS) for one in contenders}
    judged = reference.judge(prompts, answers, _ANSWER_TOKENS)
    for contender in contenders:
        found = judged[name_of(contender)]
        print(
            f"{name_of(contender)}: {found['agreeing']} of {found['tokens']} tokens agree, at most {found['farthest']:.2g} below the likeliest",
            flush=True,
        )
        if contender.format in _EXACT:
            assert found["farthest"] <= _ROUNDING, f"{name_of(contender)} has a token {found['farthest']:.2g} below the likeliest"
    return {"reference": name_of(reference), "rounding": _ROUNDING, "answers": judged}


def main(arguments: Sequence[str] | None = None) -> None:
    """Checks, measures, writes after each round, and prints the table."""
    chosen = _parse(arguments)
    # Servers are ended where a run ends, whoever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder: Path = chosen.model or resolve_model(None, download_from_hub, os.environ).folder
    vocabulary = vocabulary_of(folder)
    weights = llama_cpp.prepare(folder, chosen.llama)
    theirs = [LlamaFormat(format_, path, vocabulary) for format_, path in zip(chosen.llama, weights, strict=True)]
    rivals = [TransformersFormat(one, folder) for one in chosen.transformers]
    ours = [parse_format(one, folder) for one in chosen.ours]
    contenders: list[Contender] = [*theirs, *rivals, *ours]
    loads = [
        ServedLoad(concurrency, max(chosen.requests, concurrency), chosen.scale, temperature, seed=0)
        for temperature in chosen.temperatures
        for concurrency in chosen.concurrency
    ]
    described = {
        "model": folder.name,
        "threads": THREADS,
        "sizes": {"prefill": PREFILL_TOKENS, "context": CONTEXT_TOKENS, "decode_steps": DECODE_STEPS},
        "loads": [load._asdict() for load in loads],
        "weights_bytes": {one.format: one.weights.stat().st_size for one in theirs},
        "ours": {one.format: {"model": one.folder.name, "settings": dict(one.settings)} for one in ours},
        "checks": check(contenders, TransformersFormat("float32", folder)) if chosen.check else None,
    }
    bench = Bench(contenders, _parts(chosen.parts, loads), Watch(chosen.patience))
    for number in range(chosen.rounds):
        bench.round(number)
        print(_write(chosen.output, {**described, "rounds": number + 1}, bench, _columns(chosen.parts, loads)), flush=True)


def _write(path: Path, described: dict[str, Any], bench: Bench, columns: Sequence[str]) -> str:
    """Writes the results file and the table beside it; returns the table."""
    rows = bench.rows()
    document = {
        "what": "tokens per second of this engine, llama.cpp and transformers: same model, machine and threads, in turns; medians, extremes, "
        "and ratios to llama.cpp's best in each column",
        **describe_environment(torch.device("cpu")),
        "llama.cpp": {**llama_cpp.version(), "compiler": _first_line(["c++", "--version"])},
        "cpu_flags": _cpu_flags(),
        **described,
        "rows": [{**row._asdict(), "of_best": of_best} for row, of_best in zip(rows, ratios(rows, columns), strict=True)],
        "quiet_limit_cores": QUIET_CORES,
        "others": bench.others,
    }
    table = as_markdown(rows, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".md").write_text(table + "\n")
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("--model", type=Path, help="a model folder with a GGUF file (default: the one that `triserve up` serves)")
    parser.add_argument(
        "--ours",
        nargs="*",
        default=_OURS,
        metavar="NAME=FOLDER[:SETTING=VALUE,...]",
        help=f"formats of this engine, an empty folder being the model's own and {QUANTISED}NAME what `triserve quantize` makes of it; settings are "
        "variables of the environment (default: %(default)s)",
    )
    parser.add_argument("--llama", nargs="*", default=list(llama_cpp.FORMATS), choices=llama_cpp.FORMATS, help="formats of llama.cpp")
    parser.add_argument("--transformers", nargs="*", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--parts", nargs="+", default=[COMPUTED, SERVED], choices=[COMPUTED, SERVED])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64], help="requests at once over HTTP")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0], help="over HTTP")
    parser.add_argument("--requests", type=int, default=128, help="of a load over HTTP, or as many as are at once")
    parser.add_argument(
        "--scale", type=float, default=0.25, help="of the bundled lengths, which have 113 tokens of prompt and 321 of answer on average"
    )
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a quiet machine before each measurement")
    parser.add_argument("--no-check", dest="check", action="store_false", help="look at no answers first")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the results file; the table is written beside it")
    chosen = parser.parse_args(arguments)
    for name in ("rounds", "requests"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} is {getattr(chosen, name)}, it must be at least 1")
    return chosen


def _parts(names: Sequence[str], loads: Sequence[ServedLoad]) -> dict[str, Callable[[Contender, int], Figures]]:
    parts: dict[str, Callable[[Contender, int], Figures]] = {}
    if COMPUTED in names:
        parts[COMPUTED] = lambda contender, number: contender.computed(number)
    if SERVED in names:
        for load in loads:
            parts[load.name] = lambda contender, number, load=load: contender.served(load)  # type: ignore[misc]
    return parts


def _columns(names: Sequence[str], loads: Sequence[ServedLoad]) -> list[str]:
    computed = [prefill_column(), *(decode_column(size) for size in DECODE_SIZES)]
    return (computed if COMPUTED in names else []) + ([load.name for load in loads] if SERVED in names else [])


def _cpu_flags() -> list[str]:
    """Those of vectors and matrices."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma", "f16c", "asimd", "sve", "i8mm", "bf16")))


def _first_line(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n")[0]


if __name__ == "__main__":
    main()
