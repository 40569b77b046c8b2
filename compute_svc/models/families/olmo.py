"""OLMo 2, 3 and E: queries and keys normalised over all heads together; 2 and 3 have norms behind attention and MLP and none before, 3 windows too.

OLMoE has norms before, and experts in every layer. In 3 only layers that see everything are stretched to longer contexts.
"""

from __future__ import annotations

from compute_svc.models.config import Experts, LayerKind, ModelConfig, NormPlacement, Rope
from compute_svc.models.config_fields import ConfigFields, read_rope, read_ropes_by_kind, uniform, windowed
from compute_svc.models.example import GROUPED_SIZES, LINEAR_ROPE, SIZES, YARN_ROPE, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("Olmo2ForCausalLM", "Olmo3ForCausalLM", "OlmoeForCausalLM")

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
    Example(
        model_type="olmo3",
        fields={**GROUPED_SIZES, "sliding_window": 9},
        variants={
            "windows": {},
            "mixed-windows-yarn": {
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {
                    "full_attention": YARN_ROPE,
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                },
            },
        },
    ),
    Example(
        model_type="olmoe",
        fields={**SIZES, "intermediate_size": 24, "num_experts": 5, "num_experts_per_tok": 2},
        variants={
            "mha": {},
            "gqa-clipped-normalised": {"num_key_value_heads": 2, "clip_qkv": 1.5, "norm_topk_prob": True},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """An OLMo. Raises as `llama_like` and `windowed` do."""
    bias = fields.flag("attention_bias", False)
    width = fields.count("head_dim", fields.count("hidden_size") // fields.count("num_attention_heads"))
    is_oe = architecture == "OlmoeForCausalLM"
    num_layers = fields.count("num_hidden_layers")
    if architecture == "Olmo3ForCausalLM":
        kinds, kind_of_layer = _kinds_of_third(fields, width, num_layers)
    else:
        kinds, kind_of_layer = uniform(LayerKind(rope=read_rope(fields, width)), num_layers)
    config = llama_like(
        fields,
        architecture,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm_eps=fields.number("rms_norm_eps", 1e-5),
        qkv_bias=bias,
        output_bias=bias,
        norm_placement=NormPlacement.PRE if is_oe else NormPlacement.POST,
        qk_norm="all",
        qkv_limit=fields.optional_number("clip_qkv"),
        experts=_experts(fields, num_layers) if is_oe else None,
    )
    if is_oe:
        return config, WeightNames()
    return config, WeightNames(attention_output_norm="post_attention_layernorm", mlp_output_norm="post_feedforward_layernorm")


def _kinds_of_third(fields: ConfigFields, width: int, num_layers: int) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    ropes = read_ropes_by_kind(fields, width)
    if ropes is None:
        whole = read_rope(fields, width, theta=500000.0)
        ropes = whole, Rope(dims=whole.dims, theta=whole.theta)
    sliding = LayerKind(rope=ropes[1], window=fields.count("sliding_window", 4096))
    default = ["sliding_attention" if (layer + 1) % 4 else "full_attention" for layer in range(num_layers)]
    return windowed(fields, LayerKind(rope=ropes[0]), sliding, default=default)


def _experts(fields: ConfigFields, num_layers: int) -> Experts:
    return Experts(
        count=fields.count("num_experts"),
        per_token=fields.count("num_experts_per_tok"),
        intermediate_size=fields.count("intermediate_size"),
        normalise=fields.flag("norm_topk_prob", False),
        layers=frozenset(range(num_layers)),
    )
