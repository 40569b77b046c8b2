"""MiniCPM 1 and 2, dense: Llama's form with scaled embeddings, residuals (by depth) and logits (by width)."""

from __future__ import annotations

import math

from compute_svc.models.config import ModelConfig
from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.example import Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("MiniCPMForCausalLM",)

EXAMPLES: tuple[Example, ...] = ()
"""transformers does not ship it: tests/oracle/references/minicpm.py writes its checkpoints."""


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A MiniCPM. Raises as `llama_like` does."""
    fields.require("attention_bias", False)
    # Of MiniCPM-MoE, which has the same name.
    fields.require("num_experts", 0)
    config = llama_like(
        fields,
        architecture,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        embedding_scale=fields.number("scale_emb", 1.0),
        residual_scale=fields.number("scale_depth", 1.0) / math.sqrt(fields.count("num_hidden_layers")),
        logit_scale=fields.number("dim_model_base", fields.count("hidden_size")) / fields.count("hidden_size"),
    )
    return config, WeightNames()
