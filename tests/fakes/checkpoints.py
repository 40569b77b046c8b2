"""Small random checkpoints, written by the reference implementation itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
}
_GROUPED_SIZES = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
_GPT_SIZES = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 512}
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# The default padding id of these lies outside the small vocabulary.
_PADDED_SIZES = {**_GROUPED_SIZES, "pad_token_id": 0}

_SIZES_OF: dict[str, dict[str, Any]] = {
    "llama": _GROUPED_SIZES,
    "mistral": _GROUPED_SIZES,
    "mixtral": {**_GROUPED_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": _GROUPED_SIZES,
    "qwen2_moe": {**_GROUPED_SIZES, **_EXPERTS, "shared_expert_intermediate_size": 40},
    "qwen3": _GROUPED_SIZES,
    "qwen3_moe": {**_GROUPED_SIZES, **_EXPERTS},
    "gemma": _GROUPED_SIZES,
    "gemma2": _GROUPED_SIZES,
    "gemma3_text": _GROUPED_SIZES,
    "glm": _PADDED_SIZES,
    "glm4": _PADDED_SIZES,
    "phi": {**_SIZES, "num_key_value_heads": 2},
    "phi3": {**_SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 0},
    "falcon": {name: size for name, size in _SIZES.items() if name != "intermediate_size"},
    "bloom": {"vocab_size": 97, "hidden_size": 48, "n_layer": 3, "n_head": 6},
    "mpt": {"vocab_size": 97, "d_model": 48, "n_layers": 3, "n_heads": 6, "max_seq_len": 512},
    "opt": {**{name: size for name, size in _SIZES.items() if name != "intermediate_size"}, "ffn_dim": 80, "word_embed_proj_dim": 48},
    "gpt2": _GPT_SIZES,
    "gpt_bigcode": _GPT_SIZES,
    "gptj": {**_GPT_SIZES, "rotary_dim": 4},
    "gpt_neox": _SIZES,
}

FAMILIES = tuple(_SIZES_OF)
"""What `save_checkpoint` can write: the names that transformers gives the types of model."""


def save_checkpoint(folder: Path, family: str, *, seed: int = 0, max_shard_size: str = "1GB", **overrides: Any) -> PreTrainedModel:
    """Writes a random float32 checkpoint of a family and returns the model that wrote it, ready to be asked for the right answers.

    All parameters are random, norms and biases included, and large enough for logits to differ visibly.

    Args:
        folder: Where to; must exist.
        family: One of FAMILIES.
        seed: Of the parameters.
        max_shard_size: Splits the tensors over several files when small.
        overrides: Fields of the family's config, over small defaults with odd proportions; `...` leaves one out.
    """
    fields = {name: value for name, value in {**_SIZES_OF[family], **overrides}.items() if value is not ...}
    config = transformers.AutoConfig.for_model(family, **fields, attn_implementation="eager")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    _randomise(model)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


@torch.no_grad()
def _randomise(model: PreTrainedModel) -> None:
    norms = {
        f"{name}.weight" for name, module in model.named_modules() if type(module).__name__.endswith("Norm") and module.weight is not None
    }
    for name, parameter in model.named_parameters():
        if name in norms:
            # Around what it is before training: one, or zero in families that store the difference from one.
            parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))
        else:
            parameter.normal_(std=0.3 if parameter.dim() == 1 else 1.5 * parameter.shape[-1] ** -0.5)


def edit_config(folder: Path, **changes: Any) -> None:
    """Sets fields of a checkpoint's config.json; a field set to `...` is removed."""
    path = folder / "config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
