"""Models with weights as `triserve quantize` would write them, computed by the engine, without a folder in between."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch

from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.loading import ModelBuilder
from compute_svc.models.registry import read_config
from compute_svc.models.weights import open_checkpoint
from compute_svc.quantise.folder import Method, round_to_nearest, source_of
from compute_svc.quantise.overlay import OverlaidCheckpoint
from compute_svc.quantise.scheme import Scheme
from compute_svc.quantise.stored_forms import as_stored
from compute_svc.stored_weights.coded_weight import CodedWeight


class Quantised(NamedTuple):
    """A model and what its layers' matrices take, in bytes."""

    model: CausalLM
    num_bytes: int


def quantised_model(
    folder: Path, scheme: Scheme, *, method: Method = round_to_nearest, activations: Literal["float", "int8"] = "float"
) -> Quantised:
    """The model of a folder with its weights quantised.

    Args:
        folder: Holds a float checkpoint.
        scheme: What to store the weights as.
        method: Chooses codes.
        activations: Whether integers are multiplied as such, by rounded activations; otherwise their numbers are, in float32.
    """
    with torch.inference_mode(), open_checkpoint(folder) as checkpoint:
        reading = read_config(folder)
        source, reading = source_of(checkpoint, reading, scheme)
        coded: dict[str, CodedWeight] = {}
        plain: dict[str, torch.Tensor] = {}
        for part in method(source, reading):
            coded |= {module: as_stored(weight, nested=scheme.nested) for module, weight in part.coded.items()}
            plain |= part.plain
        overlay = OverlaidCheckpoint(checkpoint, coded, plain)
        builder = ModelBuilder(
            reading.config,
            reading.names,
            overlay,
            dtype=torch.float32,
            device=torch.device("cpu"),
            activations=activations,
            on_progress=None,
        )
        return Quantised(builder.build(), sum(weight.num_bytes for weight in coded.values()))
