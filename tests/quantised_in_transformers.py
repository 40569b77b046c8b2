"""What `triserve quantize` writes, as transformers reads it: `python -m tests.quantised_in_transformers`, with compressed-tensors and bitsandbytes installed.

For a small random Llama, and SmolLM2 where it is there, every format: the numbers that compressed-tensors and bitsandbytes make of the files beside those that this engine
does, which must be the same bit for bit; and the logits of transformers' model with the files beside those with the numbers alone. Writes a results file.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from compute_svc.models.weights import open_checkpoint
from compute_svc.quantise.folder import quantise_folder, round_to_nearest
from compute_svc.quantise.scheme import Scheme
from gateway.cli.model_files.model_folder import ModelUnavailable, download_from_hub, resolve_model
from tests.environment import describe_environment
from tests.fakes.checkpoints import save_checkpoint

RESULTS = Path(__file__).parent / "bench" / "results" / "quantised_in_transformers.json"
SCHEMES = {
    "int8 W8A8": Scheme(weights="int8", activations="int8"),
    "int8, head int8": Scheme(weights="int8", activations="int8", head=True),
    "int8 weights": Scheme(weights="int8", activations="float"),
    "int4 g128": Scheme(weights="int4", group=128, activations="float"),
    "int4 g32 A8, head int8": Scheme(weights="int4", group=32, activations="int8", head=True),
    "fp8": Scheme(weights="fp8", activations="fp8"),
    "nf4": Scheme(weights="nf4", activations="float"),
    "nf4, nested": Scheme(weights="nf4", activations="float", nested=True),
}
_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}
_CPU = torch.device("cpu")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares and writes the results file; ends with status 1 if any number differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.quantised_in_transformers", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only-small", action="store_true", help="without SmolLM2")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "llama"
        small.mkdir()
        save_checkpoint(small, "llama", **_SIZES)
        models = {"a random Llama": small} | ({} if chosen.only_small else _smollm2())
        lines = {
            model: {name: _compared(folder, scheme, Path(scratch)) for name, scheme in SCHEMES.items()} for model, folder in models.items()
        }
    libraries = {name: version(name) for name in ("compressed-tensors", "bitsandbytes")}
    what = "matrices whose numbers differ between the libraries and this engine, and the largest difference of logits over their spread"
    chosen.results.write_text(json.dumps({"what": what, **describe_environment(_CPU), **libraries, "models": lines}, indent=1) + "\n")
    if any(line["matrices_that_differ"] for formats in lines.values() for line in formats.values()):
        raise SystemExit("some numbers differ")


def _smollm2() -> dict[str, Path]:
    try:
        return {"SmolLM2-135M": resolve_model(None, download_from_hub, os.environ).folder}
    except ModelUnavailable:
        return {}


def _compared(source: Path, scheme: Scheme, scratch: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        folder = Path(out)
        quantise_folder(source, folder, scheme, round_to_nearest, lambda done, total: None)
        ours = _read_here(folder)
        if scheme.weights == "nf4":
            theirs = _read_by_bitsandbytes(folder)
            model = None
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            ids = torch.arange(1, 65)[None]
            with torch.inference_mode():
                # The first pass unpacks the weights.
                logits = model(ids).logits
            theirs = {name: tensor.float() for name, tensor in model.state_dict().items() if name in ours}
        differ = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
        line: dict[str, Any] = {"matrices": len(ours), "matrices_that_differ": len(differ)}
        if model is not None:
            line["logits"] = _logits_difference(model, logits, ids)
    print(scheme, line, flush=True)  # noqa: T201
    return line


def _logits_difference(model: transformers.PreTrainedModel, logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Between a model as the library computes it, its activations rounded where the config says so, and the same numbers in a plain one."""
    config = transformers.AutoConfig.from_pretrained(model.config.name_or_path)
    del config.quantization_config
    plain = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    with torch.inference_mode():
        right = plain(ids).logits
    return round(float((logits - right).abs().max() / right.std()), 6)


def _read_here(folder: Path) -> dict[str, torch.Tensor]:
    with torch.inference_mode(), open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name, torch.float32, _CPU) for name, info in checkpoint.tensors.items() if info.coded_bytes}


def _read_by_bitsandbytes(folder: Path) -> dict[str, torch.Tensor]:
    from bitsandbytes.functional import QuantState, dequantize_4bit  # type: ignore[import-not-found]  # noqa: PLC0415  # installed for this script alone

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    found = {}
    for name, data in tensors.items():
        state = {other: tensor for other, tensor in tensors.items() if other.startswith(f"{name}.")}
        if state:
            found[name] = dequantize_4bit(data, QuantState.from_dict(state, device=_CPU)).float()
    return found


if __name__ == "__main__":
    main()
