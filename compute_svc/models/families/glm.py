"""GLM-4 as transformers ships it: half of each head turns, neighbours together; the newer one has norms behind attention and MLP too."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig, NormPlacement
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform
from compute_svc.models.example import PADDED_SIZES, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("GlmForCausalLM", "Glm4ForCausalLM")

EXAMPLES = (
    Example(
        model_type="glm",
        fields=PADDED_SIZES,
        variants={
            "biases": {"attention_bias": True},
            "wide-heads-mqa": {"attention_bias": False, "head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True},
        },
    ),
    Example(
        model_type="glm4",
        fields=PADDED_SIZES,
        variants={
            "gqa": {"attention_bias": False},
            "wide-heads-biases": {"attention_bias": True, "head_dim": 16, "num_key_value_heads": 6},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A GLM. Raises as `llama_like` does."""
    is_newer = architecture == "Glm4ForCausalLM"
    width = fields.count("head_dim", 128)
    rope = read_rope(fields, width, share=0.5, interleaved=True)
    kinds, kind_of_layer = uniform(LayerKind(rope=rope), fields.count("num_hidden_layers"))
    config = llama_like(
        fields,
        architecture,
        head_dim=width,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        qkv_bias=fields.flag("attention_bias", False),
        norm_placement=NormPlacement.SANDWICH if is_newer else NormPlacement.PRE,
    )
    names = WeightNames(
        mlp_in=("mlp.gate_up_proj",), attention_output_norm="post_self_attn_layernorm", mlp_output_norm="post_mlp_layernorm"
    )
    return config, names
