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

# Would change the answers of architectures that do not ask for them, unless they have the value behind them, or are 0, which stands for
# absent. Other entries that nobody asks for are named, not refused.
_MEANINGFUL: dict[str, object] = {
    "attention.causal": True,
    "attention.scale": None,
    "embedding_scale": 1.0,
    # Softmax.
    "expert_gating_func": 1,
    "expert_group_count": 1,
    "expert_weights_scale": 1.0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
}
# Says what other entries say.
_REDUNDANT = ("rope.scaling.finetuned", "tensor_data_layout", "vocab_size")

# What transformers knows each by.
_MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "Phi3ForCausalLM": "phi3",
    "GPT2LMHeadModel": "gpt2",
    "GPTBigCodeForCausalLM": "gpt_bigcode",
    "FalconForCausalLM": "falcon",
    "GPTNeoXForCausalLM": "gpt_neox",
    "BloomForCausalLM": "bloom",
    "MPTForCausalLM": "mpt",
    "GlmForCausalLM": "glm",
    "Glm4ForCausalLM": "glm4",
    "BaiChuanForCausalLM": "baichuan",
    "BaichuanForCausalLM": "baichuan",
}

# Numbers that config.json holds instead.
_CONFIG_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class GgufModel(NamedTuple):
    """What was read.

    Attributes:
        config: What config.json says.
        recipes: How each tensor of the family is made, by its name there.
        unused: Keys of the architecture's metadata that play no part.
    """

    config: Config
    recipes: dict[str, Recipe]
    unused: tuple[str, ...]


def read_model(file: GgufFile) -> GgufModel:
    """Reads a model's description; reads no weights.

    Raises:
        GgufError: The architecture is not supported, or metadata or tensors do not fit it.
    """
    if file.architecture not in ARCHITECTURES:
        raise GgufError(f"{file.place}: architecture {file.architecture!r} is not supported; supported: {', '.join(sorted(ARCHITECTURES))}")
    tensors = TensorMap(file)
    config = ARCHITECTURES[file.architecture](file, tensors)
    prefix = f"{file.architecture}."
    unused = [name for key in file.unasked(prefix) if (name := key.removeprefix(prefix)) not in _REDUNDANT]
    for name in unused:
        value = file.get(prefix + name)
        if name in _MEANINGFUL and value != _MEANINGFUL[name] and (value is False or value != 0):
            raise GgufError(f"{file.place}: {prefix}{name} is not supported; without it answers would be others")
    named = {"model_type": _MODEL_TYPES[config["architectures"][0]], **config}
    return GgufModel(named, tensors.finish(ignored=_CONFIG_TENSORS), tuple(prefix + name for name in unused))
