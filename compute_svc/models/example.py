"""Small checkpoints that a family describes beside its reader, so that one file says everything of it; tests write them with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Fields = Mapping[str, Any]
"""Fields of a config.json; `...` in place of a value leaves the field out."""

# Odd proportions: what is taken for something else does not fit.
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
}
GROUPED_SIZES: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
# The default padding id of some families lies outside the small vocabulary.
PADDED_SIZES: dict[str, Any] = {**GROUPED_SIZES, "pad_token_id": 0}
GPT_SIZES: dict[str, Any] = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 512}
EXPERTS: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

LINEAR_ROPE: dict[str, Any] = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
YARN_ROPE: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One type of model of a family, small.

    Attributes:
        model_type: The name that transformers gives the type; it writes the checkpoint and knows the right logits.
        fields: Of its config, small.
        variants: What the family can do, each by a name and the fields that differ; at least one.
        published: For some variants, what config.json says in checkpoints that have this form under a name transformers does not know.
        right_since: The first version of transformers known to compute it right; an older one is not asked.
    """

    model_type: str
    fields: Fields
    variants: Mapping[str, Fields]
    published: Mapping[str, Fields] = field(default_factory=dict)
    right_since: str = "0"
