"""Small quantised checkpoints, and the same numbers as a checkpoint of floating tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from compute_svc.models.weights import SINGLE_FILE, open_checkpoint
from compute_svc.quantise.folder import quantise_folder, round_to_nearest
from compute_svc.quantise.scheme import Scheme
from tests.fakes.checkpoints import edit_config, save_checkpoint

SCHEMES = {
    "int8": Scheme(weights="int8", activations="int8", head=True),
    "int8-weights-alone": Scheme(weights="int8", activations="float"),
    "int4": Scheme(weights="int4", group=32, activations="int8"),
    "int4-weights-alone": Scheme(weights="int4", group=32, activations="float", head=True),
    "fp8": Scheme(weights="fp8", activations="fp8"),
    "nf4": Scheme(weights="nf4", activations="float"),
    "nf4-nested": Scheme(weights="nf4", activations="float", nested=True),
}


def save_quantised(folder: Path, family: str, scheme: Scheme, **overrides: Any) -> Path:
    """Writes a random checkpoint of a family and its weights rounded; returns the folder of the latter.

    Args:
        folder: Where to; must exist.
        family: See `save_checkpoint`.
        scheme: What to round to.
        overrides: See `save_checkpoint`.
    """
    source, target = folder / "float", folder / "quantised"
    source.mkdir()
    target.mkdir()
    save_checkpoint(source, family, **overrides)
    quantise_folder(source, target, scheme, round_to_nearest, lambda done, total: None)
    return target


def save_dense(folder: Path, quantised: Path) -> Path:
    """Writes the numbers that a quantised checkpoint stands for as float32; returns its folder."""
    target = folder / "dense"
    target.mkdir()
    (target / "config.json").write_text((quantised / "config.json").read_text())
    edit_config(target, quantization_config=...)
    with open_checkpoint(quantised) as checkpoint:
        tensors = {name: checkpoint.read(name, torch.float32, torch.device("cpu")).contiguous() for name in checkpoint.tensors}
    save_file(tensors, target / SINGLE_FILE, metadata={"format": "pt"})
    return target
