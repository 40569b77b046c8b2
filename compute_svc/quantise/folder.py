"""From a folder with a float checkpoint to one with the same model quantised; one tensor, or one layer, in memory at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from compute_svc.models.config import UnsupportedModel
from compute_svc.models.registry import ALL_FAMILIES, ConfigReading, read_config
from compute_svc.models.tensor_shapes import check_tensors, expected_shapes
from compute_svc.models.weights import Checkpoint, open_checkpoint, read_json
from compute_svc.quantise.config_section import KV_FIELD, quantization_config
from compute_svc.quantise.parts import Part, Source, rounded_parts
from compute_svc.quantise.scheme import Scheme
from compute_svc.quantise.selection import Selection, select
from compute_svc.quantise.shards import ShardWriter
from compute_svc.quantise.stored_forms import bitsandbytes, compressed_tensors, is_packed

_CONFIG = "config.json"

Method = Callable[[Source, ConfigReading], Iterator[Part]]
"""How codes are chosen: yields every tensor of the new checkpoint once."""
Progress = Callable[[int, int], None]
"""Told bytes read and bytes in all, after every part."""


class Written(NamedTuple):
    """What came of it.

    Attributes:
        source_bytes: Of the tensors that were read.
        num_bytes: Of those that were written.
        notes: What else the caller should know, in whole sentences.
    """

    source_bytes: int
    num_bytes: int
    notes: tuple[str, ...]


def round_to_nearest(source: Source, _: ConfigReading) -> Iterator[Part]:
    """The method without calibration."""
    return rounded_parts(source)


def quantise_folder(source: Path, folder: Path, scheme: Scheme, method: Method, on_progress: Progress) -> Written:
    """Writes config.json and the weights of a quantised checkpoint.

    Args:
        source: Holds config.json and safetensors or a GGUF file.
        folder: Where to; must exist.
        scheme: What to store the weights as.
        method: Chooses codes.
        on_progress: See there.

    Raises:
        CheckpointError: The source cannot be used, or not with this scheme or method.
        OSError: The folder cannot be written.
    """
    config = read_json(source / _CONFIG)
    if config.get("quantization_config") is not None:
        raise UnsupportedModel(f"{source} is quantised already; quantise the checkpoint that it was made of")
    with torch.inference_mode(), open_checkpoint(source) as checkpoint:
        tensors, reading = source_of(checkpoint, read_config(source), scheme)
        writer = ShardWriter(folder)
        done, total = 0, tensors.num_bytes
        for part in method(tensors, reading):
            writer.add(_tensors(part, tensors, scheme))
            done += part.source_bytes
            on_progress(done, total)
        writer.close()
    _write_config(folder, config, tensors.selection, scheme)
    return Written(total, writer.num_bytes, tuple(_notes(tensors.selection, scheme)))


def source_of(checkpoint: Checkpoint, reading: ConfigReading, scheme: Scheme) -> tuple[Source, ConfigReading]:
    """What a method reads: the checkpoint's tensors with what becomes of them, and its config with the names that the tensors have.

    Raises CheckpointError as `quantise_folder` does.
    """
    names = reading.names.fitting(checkpoint.tensors)
    check_tensors(checkpoint.tensors, reading.config, names)
    used = {*expected_shapes(reading.config, names), f"{names.lm_head}.weight"}
    dropped = frozenset(name for name in checkpoint.tensors if name not in used)
    return Source(checkpoint, select(reading.config, names, scheme), dropped, names.embedding), reading._replace(names=names)


def _tensors(part: Part, source: Source, scheme: Scheme) -> dict[str, torch.Tensor]:
    tensors = dict(part.plain)
    for module, weight in part.coded.items():
        if scheme.weights == "nf4":
            dtype = source.dtype_of(source.tensor_of(module))
            tensors |= bitsandbytes(module, weight, nested=scheme.nested, dtype=dtype)
        else:
            tensors |= compressed_tensors(module, weight, packed=is_packed(source.selection.forms[module]))
    return tensors


def _write_config(folder: Path, config: dict[str, Any], selection: Selection, scheme: Scheme) -> None:
    changed = {**config, "quantization_config": quantization_config(scheme, selection.forms, selection.inputs, selection.left)}
    if "model_type" not in config and (model_type := _model_type(config["architectures"][0])) is not None:
        # GGUF files do not say it, and transformers reads no config without.
        changed["model_type"] = model_type
    if selection.head:
        changed["tie_word_embeddings"] = False
    if scheme.kv_format is not None:
        changed[KV_FIELD] = scheme.kv_format
    (folder / _CONFIG).write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")


def _model_type(architecture: str) -> str | None:
    """What transformers calls a type of model, from the name of its class; None = it is not known."""
    stem = re.sub("(ForCausalLM|LMHeadModel)$", "", architecture).lower()
    types = [example.model_type for family in ALL_FAMILIES for example in family.EXAMPLES]
    return next((name for name in types if name.replace("_", "") == stem), None)


def _notes(selection: Selection, scheme: Scheme) -> Iterator[str]:
    for width, group in sorted(selection.regrouped(scheme.group).items() if scheme.group else ()):
        size = f"groups of {group}" if group < width else "one scale for each output"
        yield f"matrices of {width} inputs have {size}: {scheme.group} does not divide that"
    if scheme.weights == "nf4" and (odd := [name for name in selection.left if ".layers." in name]):
        yield f"{len(odd)} matrices in layers stay as they are: bitsandbytes' blocks would go over the ends of their rows, or they are routers"
