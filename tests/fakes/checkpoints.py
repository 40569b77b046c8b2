"""Small random checkpoints, written by the reference implementation itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

_CONFIGS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
}


def save_checkpoint(folder: Path, family: str, *, seed: int = 0, max_shard_size: str = "1GB", **overrides: Any) -> PreTrainedModel:
    """Writes a random float32 checkpoint of a family and returns the model that wrote it, ready to be asked for the right answers.

    All parameters are random, norms and biases included, and large enough for logits to differ visibly.

    Args:
        folder: Where to; must exist.
        family: "llama", "mistral", "qwen2" or "qwen3".
        seed: Of the parameters.
        max_shard_size: Splits the tensors over several files when small.
        overrides: Fields of the family's config, over small defaults with odd proportions; `...` leaves one out.
    """
    fields = {name: value for name, value in {**_SIZES, **overrides}.items() if value is not ...}
    config = _CONFIGS[family](**fields, attn_implementation="eager")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.3 if parameter.dim() == 1 else 1.5 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def edit_config(folder: Path, **changes: Any) -> None:
    """Sets fields of a checkpoint's config.json; a field set to `...` is removed."""
    path = folder / "config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
