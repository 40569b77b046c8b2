"""Llama 1 to 3, and what has its form and names: Yi and Aquila. Biases only where the config asks for them."""

from __future__ import annotations

from typing import Any

from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, context_limit, read_rope, uniform
from compute_svc.models.example import GROUPED_SIZES, LINEAR_ROPE, YARN_ROPE, Example
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("LlamaForCausalLM", "AquilaForCausalLM", "AquilaModel", "YiForCausalLM")

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_TUNED = {"attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}

EXAMPLES = (
    Example(
        model_type="llama",
        fields=GROUPED_SIZES,
        variants={
            "gqa": {},
            "mha-tied": {"num_key_value_heads": 6, "tie_word_embeddings": True},
            "mqa-biases": {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
            "odd-sizes": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 10, "hidden_size": 39, "intermediate_size": 37},
            "wide-heads-llama3-rope": {"head_dim": 20, "rope_parameters": _LLAMA3_ROPE},
            "narrow-heads-linear-rope": {"head_dim": 6, "rope_parameters": LINEAR_ROPE},
            "dynamic-rope": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
            "yarn": {"head_dim": 16, "rope_parameters": YARN_ROPE},
            "yarn-tuned": {"head_dim": 16, "rope_parameters": {**YARN_ROPE, **_TUNED}},
            "yarn-mscale": {"head_dim": 16, "rope_parameters": {**YARN_ROPE, "mscale": 0.707, "mscale_all_dim": 1.2}},
            "yi": {"num_key_value_heads": 3},
            "aquila": {"num_key_value_heads": 6},
            "aquila2": {"rope_parameters": LINEAR_ROPE},
        },
        published={
            "yi": {"architectures": ["YiForCausalLM"]},
            "aquila": {"architectures": ["AquilaForCausalLM"]},
            "aquila2": {"architectures": ["AquilaModel"]},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A Llama. Raises as `llama_like` does."""
    bias = fields.flag("attention_bias", False)
    config = llama_like(fields, architecture, qkv_bias=bias, output_bias=bias, mlp_bias=fields.flag("mlp_bias", False))
    return config, WeightNames()


def llama_like(fields: ConfigFields, architecture: str, *, head_dim: int | None = None, **changes: Any) -> ModelConfig:
    """A decoder whose config has Llama's field names.

    Args:
        fields: The whole config.json.
        architecture: Its name.
        head_dim: What the family takes if the field is absent; None = hidden size over heads.
        changes: Fields of `ModelConfig` that differ from Llama's.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    num_heads, hidden_size, num_layers = fields.count("num_attention_heads"), fields.count("hidden_size"), fields.count("num_hidden_layers")
    width = fields.count("head_dim", head_dim or hidden_size // num_heads)
    if "kinds" not in changes:
        changes["kinds"], changes["kind_of_layer"] = uniform(LayerKind(rope=read_rope(fields, width)), num_layers)
    if "norm_eps" not in changes:
        changes["norm_eps"] = fields.number("rms_norm_eps")
    if "activation" not in changes:
        changes["activation"] = fields.activation()
    if "tie_word_embeddings" not in changes:
        changes["tie_word_embeddings"] = fields.flag("tie_word_embeddings", False)
    if "max_position_embeddings" not in changes:
        changes["max_position_embeddings"] = context_limit(fields)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.count("num_key_value_heads", num_heads),
        head_dim=width,
        intermediate_size=fields.count("intermediate_size"),
        **changes,
    ).check(fields.place)
