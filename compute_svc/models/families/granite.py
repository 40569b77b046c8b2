"""Granite 3: Llama's form with four multipliers: of embeddings, scores, what is added to the residual stream, and (as a divisor) logits."""

from __future__ import annotations

from compute_svc.models.config import ModelConfig
from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.example import GROUPED_SIZES, LINEAR_ROPE, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("GraniteForCausalLM",)

_MULTIPLIERS = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7, "logits_scaling": 8.0}

EXAMPLES = (
    Example(
        model_type="granite",
        # Heads are hidden_size over heads; the config has no head_dim.
        fields={**{name: size for name, size in GROUPED_SIZES.items() if name != "head_dim"}, **_MULTIPLIERS},
        variants={
            "multipliers": {},
            "odd-heads-tied": {"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True},
            "no-multipliers-biases": {
                **dict.fromkeys(_MULTIPLIERS, 1.0),
                "attention_bias": True,
                "mlp_bias": True,
                "rope_parameters": LINEAR_ROPE,
            },
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A Granite. Raises as `llama_like` does."""
    bias = fields.flag("attention_bias", False)
    config = llama_like(
        fields,
        architecture,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        # Not the root of the head's width: absent, it is one.
        attention_scale=fields.number("attention_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logit_scale=1.0 / fields.number("logits_scaling", 1.0),
    )
    return config, WeightNames()
