"""Small random checkpoints of what the families describe, written by the reference implementation itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from compute_svc.models.registry import ALL_FAMILIES

EXAMPLES = {example.model_type: example for family in ALL_FAMILIES for example in family.EXAMPLES}
"""What `save_checkpoint` can write, by the name that transformers gives the type of model."""


def save_checkpoint(folder: Path, family: str, *, seed: int = 0, max_shard_size: str = "1GB", **overrides: Any) -> PreTrainedModel:
    """Writes a random float32 checkpoint of a family and returns the model that wrote it, ready to be asked for the right answers.

    All parameters and buffers that are saved are random, norms and biases included, and large enough for logits to differ visibly.

    Args:
        folder: Where to; must exist.
        family: One of EXAMPLES.
        seed: Of the parameters.
        max_shard_size: Splits the tensors over several files when small.
        overrides: Fields of the family's config, over small defaults with odd proportions; `...` leaves one out.
    """
    fields = {name: value for name, value in {**EXAMPLES[family].fields, **overrides}.items() if value is not ...}
    config = transformers.AutoConfig.for_model(family, **{"attn_implementation": "eager", **fields})
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
    saved = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in saved and buffer.is_floating_point():
            buffer.normal_(std=0.3)


def edit_config(folder: Path, **changes: Any) -> None:
    """Sets fields of a checkpoint's config.json; a field set to `...` is removed."""
    path = folder / "config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
