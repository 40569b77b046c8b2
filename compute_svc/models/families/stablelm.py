"""StableLM 2 and 3B: Llama's names, layer norms, a quarter of each head turns; attention and MLP side by side where the config asks for it."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform
from compute_svc.models.example import SIZES, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("StableLmForCausalLM", "StableLMEpochForCausalLM")

EXAMPLES = (
    Example(
        model_type="stablelm",
        fields={**SIZES, "num_key_value_heads": 2},
        variants={
            "gqa": {},
            "biases-half-turning": {"use_qkv_bias": True, "partial_rotary_factor": 0.5, "num_key_value_heads": 6},
            "parallel-tied": {
                "use_parallel_residual": True,
                "tie_word_embeddings": True,
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
            },
            "old-name": {"partial_rotary_factor": 0.5},
        },
        published={
            "old-name": {"architectures": ["StableLMEpochForCausalLM"], "rope_parameters": ..., "rope_pct": 0.5, "rope_theta": 10000}
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A StableLM. Raises as `llama_like` does."""
    fields.require("qk_layernorm", False)
    is_parallel = fields.flag("use_parallel_residual", False)
    width = fields.count("hidden_size") // fields.count("num_attention_heads")
    rope = read_rope(fields, width, share=fields.number("rope_pct", 0.25))
    kinds, kind_of_layer = uniform(LayerKind(rope=rope), fields.count("num_hidden_layers"))
    config = llama_like(
        fields,
        architecture,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm="layer",
        norm_eps=fields.number("norm_eps" if "norm_eps" in fields else "layer_norm_eps", 1e-5),
        norm_bias=True,
        residual="parallel" if is_parallel else "serial",
        shared_norm=is_parallel,
        qkv_bias=fields.flag("use_qkv_bias", False),
    )
    return config, WeightNames()
