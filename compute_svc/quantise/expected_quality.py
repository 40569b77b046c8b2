"""What formats of weights cost in quality, measured once: what `triserve inspect` says of a quantised folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from compute_svc.models.weights import Checkpoint, open_checkpoint
from triserve.rpc.folder_audit import Fact

MEASURED_ON = "SmolLM2-135M"
"""A small model: larger ones lose less."""

PERPLEXITY_CHANGE = {
    "int8, activations in int8": 3.0,
    "int8": 0.0,
    "int4 in groups of 128": 46.9,
    "int4 in groups of 32": 19.9,
    "fp8, activations in fp8": 1.7,
    "tables of 16 in groups of 64": 23.9,
}
"""Percent of float32's, of weights rounded to nearest, by `CodedWeight.format_name`; python -m tests.bench.number_formats.quality measures them."""


class StoredKind(NamedTuple):
    """Weights of one format in a folder.

    Attributes:
        numbers: How many there are.
        num_bytes: What they take, scales and all.
        format_name: Of the first of them.
    """

    numbers: int
    num_bytes: int
    format_name: str


def quality_facts(folder: Path) -> tuple[Fact, ...]:
    """Bytes of a folder's quantised weights by format, and what to expect of each; nothing for a folder without them.

    Raises:
        CheckpointError: The files cannot be read.
    """
    with torch.inference_mode(), open_checkpoint(folder) as checkpoint:
        kinds = _kinds(checkpoint)
    if not kinds:
        return ()
    sizes = "; ".join(f"{kind.num_bytes:,} bytes for {kind.numbers:,} numbers in {kind.format_name}" for kind in kinds)
    measured = f"measured on {MEASURED_ON} rounded to nearest, not on this model; larger ones lose less"
    known = [
        f"{kind.format_name}: perplexity {PERPLEXITY_CHANGE[kind.format_name]:+.1f} %"
        for kind in kinds
        if kind.format_name in PERPLEXITY_CHANGE
    ]
    unknown = [f"{kind.format_name}: not measured" for kind in kinds if kind.format_name not in PERPLEXITY_CHANGE]
    return (
        Fact("quantised weights", sizes, "codes and scales, of one weight of each width"),
        Fact("quality to expect", "; ".join(known + unknown), measured if known else "there are no figures of this format"),
    )


def _kinds(checkpoint: Checkpoint) -> list[StoredKind]:
    """One for each format, the largest first; of weights of one width and code the first one tells it."""
    samples: dict[tuple[str, int], StoredKind] = {}
    found: dict[str, StoredKind] = {}
    for name, info in checkpoint.tensors.items():
        if not info.coded_bytes:
            continue
        kind, numbers = (info.dtype, info.shape[1]), info.shape[0] * info.shape[1]
        if kind not in samples:
            weight = checkpoint.weight(name, torch.float32, torch.device("cpu"))
            samples[kind] = StoredKind(numbers, weight.num_bytes, weight.format_name)
        sample = samples[kind]
        before = found.get(sample.format_name, StoredKind(0, 0, sample.format_name))
        num_bytes = sample.num_bytes * numbers // sample.numbers
        found[sample.format_name] = StoredKind(before.numbers + numbers, before.num_bytes + num_bytes, sample.format_name)
    return sorted(found.values(), key=lambda kind: -kind.num_bytes)
