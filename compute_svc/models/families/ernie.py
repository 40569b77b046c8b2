"""ERNIE 4.5 without experts: Llama's form, neighbours turn together, one flag for all biases."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform
from compute_svc.models.example import GROUPED_SIZES, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("Ernie4_5ForCausalLM",)

EXAMPLES = (
    Example(
        model_type="ernie4_5",
        fields=GROUPED_SIZES,
        variants={
            "gqa": {},
            "mqa-biases-untied": {"num_key_value_heads": 1, "use_bias": True, "tie_word_embeddings": False, "head_dim": 12},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """An ERNIE 4.5. Raises as `llama_like` does."""
    bias = fields.flag("use_bias", False)
    width = fields.count("head_dim", fields.count("hidden_size") // fields.count("num_attention_heads"))
    kinds, kind_of_layer = uniform(
        LayerKind(rope=read_rope(fields, width, theta=500000.0, interleaved=True)), fields.count("num_hidden_layers")
    )
    config = llama_like(
        fields,
        architecture,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
    )
    return config, WeightNames()
