"""A GGUF model as its family has it: config.json and recipes of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from compute_svc.models.gguf.architectures import fused_groups, gemma, glm, gpt2, internlm2, llama, mpt, phi3, qwen
from compute_svc.models.gguf.metadata import Config
from compute_svc.models.gguf.recipes import Recipe, TensorMap
from triserve.model_files.gguf_file import GgufFile
from triserve.model_files.gguf_header import GgufError

_MODULES = (llama, qwen, gemma, phi3, gpt2, fused_groups, mpt, internlm2, glm)

ARCHITECTURES: dict[str, Callable[[GgufFile, TensorMap], Config]] = {
    architecture: module.read for module in _MODULES for architecture in module.ARCHITECTURES
}
"""How to read each architecture, by the name a file gives it."""

# Numbers that config.json holds instead.
_CONFIG_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class GgufModel(NamedTuple):
    """What was read.

    Attributes:
        config: What config.json says.
        recipes: How each tensor of the family is made, by its name there.
    """

    config: Config
    recipes: dict[str, Recipe]


def read_model(file: GgufFile) -> GgufModel:
    """Reads a model's description; reads no weights.

    Raises:
        GgufError: The architecture is not supported, or metadata or tensors do not fit it.
    """
    if file.architecture not in ARCHITECTURES:
        raise GgufError(f"{file.place}: architecture {file.architecture!r} is not supported; supported: {', '.join(sorted(ARCHITECTURES))}")
    tensors = TensorMap(file)
    config = ARCHITECTURES[file.architecture](file, tensors)
    return GgufModel(config, tensors.finish(ignored=_CONFIG_TENSORS))
