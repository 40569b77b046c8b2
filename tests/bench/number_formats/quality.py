"""What a format costs in quality: perplexity of a public-domain text, KL divergence and top-1 agreement with float32, per format.

On SmolLM2-135M-Instruct, as the development environment has it: float32 is what its Q4_1 file stands for. The weights are quantised as `triserve quantize`
does it and computed by this engine; "W8A8" and "W4A8" are with activations rounded to int8, each token to one scale, as such checkpoints say; "A8" with a scale for each
group of the weights, as the engine rounds them where the checkpoint says nothing. Formats that are
measured replace theirs in the results file, the others stay. Formats of keys and values have `python -m tests.bench.number_formats.kv_formats`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch

from compute_svc.models.registry import load_model
from compute_svc.quantise.folder import Method, round_to_nearest
from compute_svc.quantise.layerwise import Calibrated, CalibratedMethod
from compute_svc.quantise.scheme import Scheme
from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from tests.environment import describe_environment
from tests.quality.quantised_models import Quantised, quantised_model
from tests.quality.windows import CALIBRATION, PREDICTED, TEXT, WINDOW_TOKENS, Closeness, closeness, log_probabilities, read_windows

RESULTS = Path(__file__).parents[1] / "results" / "quality.json"
REFERENCE = "float32"
CALIBRATION_TOKENS = 8192
_CPU = torch.device("cpu")


class Format(NamedTuple):
    """One line of the table.

    Attributes:
        scheme: Of the weights; None = numbers.
        dtype: Of these.
        method: How codes are chosen.
        activations: See `quantised_model`.
    """

    scheme: Scheme | None = None
    dtype: torch.dtype = torch.float32
    method: str = "rtn"
    activations: Literal["float", "int8"] = "float"


def _int4(group: int, method: str = "rtn", activations: Literal["float", "int8"] = "float") -> Format:
    return Format(Scheme(weights="int4", group=group, activations=activations), method=method, activations=activations)


FORMATS = {
    REFERENCE: Format(),
    "bfloat16": Format(dtype=torch.bfloat16),
    "as the file has it, A8": Format(activations="int8"),
    "int8 W8A8": Format(Scheme(weights="int8", activations="int8"), activations="int8"),
    "int8 W8A8 smoothquant": Format(Scheme(weights="int8", activations="int8"), method="smoothquant", activations="int8"),
    "int8 W8A8, head int8": Format(Scheme(weights="int8", activations="int8", head=True), activations="int8"),
    **{f"int8 g{group} A8": Format(Scheme(weights="int8", group=group, activations="float"), activations="int8") for group in (128, 32)},
    "int8 weights": Format(Scheme(weights="int8", activations="float")),
    "fp8 weights": Format(Scheme(weights="fp8", activations="float")),
    "nf4": Format(Scheme(weights="nf4", activations="float")),
    "nf4, nested": Format(Scheme(weights="nf4", activations="float", nested=True)),
    **{f"int4 g{group} {method}": _int4(group, method) for group in (128, 64, 32) for method in ("rtn", "gptq", "awq")},
    **{f"int4 g{group} rtn A8": _int4(group)._replace(activations="int8") for group in (128, 32)},
    "int4 g128 rtn W4A8": _int4(128, "rtn", "int8"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.number_formats.quality", description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS), metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--windows", type=int, help=f"of {WINDOW_TOKENS} tokens; default: all of the text")
    parser.add_argument("--reference", type=Path, help="a file for the reference's log probabilities, kept for other runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    folder = resolve_model(None, download_from_hub, os.environ).folder
    windows = read_windows(TEXT, folder / "tokenizer.json", chosen.windows)
    with tempfile.TemporaryDirectory() as scratch:
        reference = _reference(chosen.reference or Path(scratch) / "reference.f32", folder, windows)
        for name in chosen.formats:
            began = time.monotonic()
            made = None if name == REFERENCE else _made(folder, FORMATS[name])
            own = reference if made is None else log_probabilities(made.model, windows)
            figures = closeness(own, windows, reference)
            _keep(chosen.results, name, figures, 0 if made is None else made.num_bytes, windows)
            print(
                f"{name:<24} {figures.perplexity:9.4f} {figures.kl:10.6f} {figures.top_1:8.4f}  {time.monotonic() - began:.0f} s",
                flush=True,
            )


def _reference(path: Path, folder: Path, windows: torch.Tensor) -> torch.Tensor:
    """[windows, PREDICTED, vocab_size] float32, in a file: gigabytes."""
    model = load_model(folder, dtype=torch.float32, device=_CPU, activations="float")
    shape = (len(windows), PREDICTED, model.config.vocab_size)
    if not path.exists():
        kept = np.memmap(path, np.float32, "w+", shape=shape)
        for index, rows in enumerate(log_probabilities(model, windows)):
            kept[index] = rows.numpy()
        kept.flush()
    return torch.from_numpy(np.memmap(path, np.float32, "r+", shape=shape))


def _made(folder: Path, format_: Format) -> Quantised:
    if format_.scheme is None:
        model = load_model(folder, dtype=format_.dtype, device=_CPU, activations=format_.activations)
        return Quantised(model, 0)
    return quantised_model(folder, format_.scheme, method=_method(format_.method, folder), activations=format_.activations)


def _method(name: str, folder: Path) -> Method:
    if name == "rtn":
        return round_to_nearest
    windows = read_windows(CALIBRATION, folder / "tokenizer.json", CALIBRATION_TOKENS // WINDOW_TOKENS)
    return Calibrated(cast(CalibratedMethod, name), windows.flatten())


def _keep(path: Path, name: str, figures: Closeness, num_bytes: int, windows: torch.Tensor) -> None:
    """Puts a format's figures into the results file."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    formats = results.get("formats", {})
    formats[name] = {
        "perplexity": round(figures.perplexity, 4),
        "kl_nats": round(figures.kl, 6),
        "top_1_agreement": round(figures.top_1, 5),
        "matrix_bytes": num_bytes,
    }
    if REFERENCE in formats:
        base = formats[REFERENCE]["perplexity"]
        for one in formats.values():
            one["perplexity_change_percent"] = round(100 * (one["perplexity"] / base - 1), 3)
    results = {
        "what": "perplexity, mean KL to float32 and top-1 agreement with it, by format of the weights",
        "model": "SmolLM2-135M-Instruct; float32 is what its Q4_1 file stands for",
        "text": f"tests/quality/{TEXT.name}, {len(windows)} windows of {WINDOW_TOKENS} tokens, {PREDICTED} predictions in the second half of each",
        **describe_environment(_CPU),
        "formats": {known: formats[known] for known in FORMATS if known in formats},
        **({"llama_cpp": results["llama_cpp"]} if "llama_cpp" in results else {}),
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
