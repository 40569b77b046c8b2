"""OLMo 2: norms behind attention and MLP and none before, queries and keys normalised over all heads together."""

from __future__ import annotations

from compute_svc.models.config import ModelConfig, NormPlacement
from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.example import GROUPED_SIZES, LINEAR_ROPE, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("Olmo2ForCausalLM",)

EXAMPLES = (
    Example(
        model_type="olmo2",
        fields=GROUPED_SIZES,
        variants={
            "gqa": {},
            "mha-tied-odd-heads": {"num_key_value_heads": 6, "head_dim": 10, "tie_word_embeddings": True},
            "mqa-biases-linear-rope": {"num_key_value_heads": 1, "attention_bias": True, "rope_parameters": LINEAR_ROPE},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """An OLMo 2. Raises as `llama_like` does."""
    bias = fields.flag("attention_bias", False)
    config = llama_like(fields, architecture, qkv_bias=bias, output_bias=bias, norm_placement=NormPlacement.POST, qk_norm="all")
    return config, WeightNames(attention_output_norm="post_attention_layernorm", mlp_output_norm="post_feedforward_layernorm")
