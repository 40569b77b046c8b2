"""Every model family there is, and how to load a checkpoint of one."""

from __future__ import annotations

import importlib
import pkgutil
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeAlias

import torch

from compute_svc.kernels.exact_products import use_exact_products
from compute_svc.kernels.host.host_memory import keep_freed_memory
from compute_svc.kernels.linear import ActivationFormat
from compute_svc.kv.kv_format import KV_FORMATS
from compute_svc.models import families
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.config import ModelConfig, StreamingWindow, UnsupportedModel
from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.example import Example
from compute_svc.models.loading import ModelBuilder, Progress
from compute_svc.models.unsupported import what_is_missing
from compute_svc.models.weight_names import WeightNames
from compute_svc.models.weights import CheckpointError, open_checkpoint, read_json
from compute_svc.parallel.groups.rank_group import ALONE, RankGroup
from compute_svc.parallel.groups.stage_group import ONE_STAGE, StageGroup
from compute_svc.parallel.parts.layer_shares import layers_of, stage_config
from compute_svc.parallel.parts.shares import Share
from compute_svc.parallel.parts.sliced_checkpoint import SlicedCheckpoint

Reader: TypeAlias = Callable[[ConfigFields, str], tuple[ModelConfig, WeightNames]]
"""Of a config.json, under the architecture's name."""


class Family(NamedTuple):
    """What a module of `families` says; all three must be there.

    Attributes:
        name: Of the module.
        ARCHITECTURES: Names that checkpoints give themselves.
        EXAMPLES: What transformers can write and compute of it; empty if it ships none.
        read: What a config.json describes, and what its tensors are called.
    """

    name: str
    ARCHITECTURES: tuple[str, ...]
    EXAMPLES: tuple[Example, ...]
    read: Reader


def find_families(package: ModuleType) -> tuple[Family, ...]:
    """The families of a package: every module in it is one.

    Raises:
        TypeError: A module lacks something of a family, or says nothing in it.
        ValueError: Two modules read the same architecture, or describe the same type of model.
    """
    found = []
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        lacking = [name for name in Family._fields[1:] if not hasattr(module, name)]
        if lacking or not module.ARCHITECTURES:
            raise TypeError(f"{module.__name__} is no model family: it lacks {', '.join(lacking) or 'a name in ARCHITECTURES'}")
        found.append(Family(info.name, module.ARCHITECTURES, module.EXAMPLES, module.read))
    _refuse_doubles("architecture", [(name, family.name) for family in found for name in family.ARCHITECTURES])
    _refuse_doubles("model_type", [(example.model_type, family.name) for family in found for example in family.EXAMPLES])
    return tuple(found)


def _refuse_doubles(kind: str, claims: Sequence[tuple[str, str]]) -> None:
    owners: dict[str, str] = {}
    for name, family in claims:
        if name in owners:
            raise ValueError(f"{kind} {name} is claimed twice, by the families {owners[name]} and {family}")
        owners[name] = family


ALL_FAMILIES = find_families(families)
"""Every module of `families`."""

FAMILIES: dict[str, Reader] = {architecture: family.read for family in ALL_FAMILIES for architecture in family.ARCHITECTURES}
"""How to read the config of each architecture."""

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16)


class ConfigReading(NamedTuple):
    """What was read from a config.json.

    Attributes:
        config: What it describes.
        names: What its tensors are called.
        fields: The file's, which know what was asked of them.
        kv_format: Name of what keys and values are to be stored as, in KV_FORMATS; None = the file does not say.
    """

    config: ModelConfig
    names: WeightNames
    fields: ConfigFields
    kv_format: str | None


def read_model_config(folder: Path, *, max_tokens: int | None = None, streaming: StreamingWindow | None = None) -> ModelConfig:
    """What a checkpoint's config.json describes.

    Args:
        folder: Holds it.
        max_tokens: See `load_model`.
        streaming: See `load_model`.

    Raises:
        UnsupportedModel: It needs something this engine does not do.
        CheckpointError: config.json is missing or malformed.
    """
    return read_config(folder, max_tokens, streaming).config


def read_config(folder: Path, max_tokens: int | None = None, streaming: StreamingWindow | None = None) -> ConfigReading:
    """Everything that `load_model` takes from a config.json. Arguments and errors are those of `read_model_config`."""
    path = folder / "config.json"
    fields = ConfigFields(read_json(path), str(path), max_tokens=max_tokens)
    names = fields.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(f"{path} names no architecture")
    if names[0] not in FAMILIES:
        missing = what_is_missing(names[0])
        reason = "" if missing is None else f": it needs {missing}"
        raise UnsupportedModel(f"{path}: architecture {names[0]} is not supported{reason}; supported: {', '.join(sorted(FAMILIES))}")
    config, tensor_names = FAMILIES[names[0]](fields, names[0])
    # Where the files are opened it is read.
    for name in ("quantization_config", "compression_config"):
        fields.get(name)
    kv_format = _kv_format(fields)
    return ConfigReading(config if streaming is None else config.streaming(streaming, fields.place), tensor_names, fields, kv_format)


def _kv_format(fields: ConfigFields) -> str | None:
    told = fields.get("triserve_kv_format")
    if told is None or (isinstance(told, str) and told in KV_FORMATS):
        return told
    raise CheckpointError(f"{fields.place}: triserve_kv_format is {reprlib.repr(told)}; supported: {', '.join(KV_FORMATS)}")


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_tokens: int | None = None,
    streaming: StreamingWindow | None = None,
    activations: ActivationFormat = "auto",
    on_progress: Progress | None = None,
    ranks: RankGroup = ALONE,
    stages: StageGroup = ONE_STAGE,
) -> CausalLM:
    """Loads a checkpoint.

    Args:
        folder: Holds config.json and safetensors files.
        dtype: Of weights, activations and KV: float32 or bfloat16.
        device: Where to.
        max_tokens: The longest request that will be served; None = as long as the checkpoint allows. Models with one set of rotary
            frequencies for short contexts and one for long ones take the set for this length.
        streaming: What queries see in place of everything; None = what the model was made for.
        activations: What integer weights are multiplied by (kernels/linear/ints.py).
        on_progress: Told bytes done and bytes in all, after every tensor.
        ranks: This one's part of the model is loaded; `require_divisible` has nothing against them.
        stages: This one's layers are loaded; there are no more stages than layers.

    Effects: on a CPU, tunes the process's allocator (kernels/host/host_memory.py); on CUDA, its products (kernels/exact_products.py).

    Raises:
        UnsupportedModel: The checkpoint needs something this engine does not do.
        CheckpointError: A file is missing, damaged or does not fit the others.
        ValueError: The dtype is not one of the two.
    """
    if dtype not in SUPPORTED_DTYPES:
        raise ValueError(f"dtype is {dtype}; supported: {', '.join(map(str, SUPPORTED_DTYPES))}")
    config, names, *_ = read_config(folder, max_tokens, streaming)
    if device.type == "cpu":
        keep_freed_memory()
    elif device.type == "cuda":
        use_exact_products()
    with torch.inference_mode(), open_checkpoint(folder) as checkpoint:
        if ranks.size > 1 or stages.count > 1:
            share, names = Share(ranks.rank, ranks.size), names.fitting(checkpoint.tensors)
            layers = layers_of(stages.stage, stages.count, config.num_layers)
            checkpoint = SlicedCheckpoint(checkpoint, config, names, share, layers)
            config = stage_config(share.config(config), layers)
        builder = ModelBuilder(
            config,
            names,
            checkpoint,
            dtype=dtype,
            device=device,
            activations=activations,
            on_progress=on_progress,
            ranks=ranks,
            stages=stages,
        )
        return builder.build()
