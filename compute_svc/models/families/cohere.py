"""Command R and Aya: attention and MLP side by side behind one layer norm, neighbours turn together, logits are multiplied.

In the second version three of four layers have a window, and those that see everything do not turn.
"""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform, windowed
from compute_svc.models.example import SIZES, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("CohereForCausalLM", "Cohere2ForCausalLM")

_EXAMPLE = {**SIZES, "num_key_value_heads": 2, "logit_scale": 0.25}

EXAMPLES = (
    Example(
        model_type="cohere",
        fields=_EXAMPLE,
        variants={
            "gqa": {},
            "mha-biases-untied": {"num_key_value_heads": 6, "attention_bias": True, "tie_word_embeddings": False},
        },
    ),
    Example(
        model_type="cohere2",
        fields={**_EXAMPLE, "sliding_window": 9},
        variants={
            "mixed-window": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            "mqa-long-window": {"num_key_value_heads": 1, "sliding_window": 150},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A Command R. Raises as `llama_like` and `windowed` do."""
    fields.require("use_qk_norm", False)
    num_layers = fields.count("num_hidden_layers")
    rope = read_rope(fields, fields.count("hidden_size") // fields.count("num_attention_heads"), interleaved=True)
    if architecture == "CohereForCausalLM":
        kinds, kind_of_layer = uniform(LayerKind(rope=rope), num_layers)
    else:
        pattern = fields.count("sliding_window_pattern", 4)
        default = ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(num_layers)]
        sliding = LayerKind(rope=rope, window=fields.count("sliding_window", 4096))
        kinds, kind_of_layer = windowed(fields, LayerKind(), sliding, default=default)
    bias = fields.flag("attention_bias", False)
    config = llama_like(
        fields,
        architecture,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        norm="layer",
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        residual="parallel",
        shared_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        logit_scale=fields.number("logit_scale", 0.0625),
    )
    return config, WeightNames()
