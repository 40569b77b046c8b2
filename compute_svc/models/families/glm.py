"""GLM-4 as transformers ships it: half of each head turns, neighbours together; the newer one has norms behind attention and MLP too.

GLM-4.5 and 4.6 have DeepSeek V3's experts, halves that turn, and may normalise queries and keys.
"""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig, NormPlacement
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform
from compute_svc.models.example import GROUPED_SIZES, PADDED_SIZES, Example
from compute_svc.models.families.deepseek import read_experts
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("GlmForCausalLM", "Glm4ForCausalLM", "Glm4MoeForCausalLM")

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
    Example(
        model_type="glm4_moe",
        fields={
            **GROUPED_SIZES,
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
        },
        variants={
            "experts": {},
            "groups-qk-norm-biases": {
                "n_group": 2,
                "topk_group": 1,
                "use_qk_norm": True,
                "attention_bias": True,
                "head_dim": 16,
                "routed_scaling_factor": 2.5,
            },
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A GLM. Raises as `llama_like` does."""
    if architecture == "Glm4MoeForCausalLM":
        return _read_with_experts(fields, architecture)
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


def _read_with_experts(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    num_layers = fields.count("num_hidden_layers")
    width = fields.count("head_dim", fields.count("hidden_size") // fields.count("num_attention_heads"))
    kinds, kind_of_layer = uniform(LayerKind(rope=read_rope(fields, width, share=0.5)), num_layers)
    config = llama_like(
        fields,
        architecture,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        qkv_bias=fields.flag("attention_bias", False),
        qk_norm="head" if fields.flag("use_qk_norm", False) else None,
        experts=read_experts(fields, num_layers, is_third=True),
    )
    names = WeightNames(
        router_correction="mlp.gate.e_score_correction_bias",
        shared_expert="mlp.shared_experts.",
        # As DeepSeek V3's: a layer behind the last predicts a second token.
        unused=(f"model.layers.{num_layers}.",),
    )
    return config, names
