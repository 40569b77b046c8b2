"""Gemma 1, 2 and 3 (text): scaled embeddings, norms stored as the difference from one, gelu gates; 2 caps scores and logits; 3 normalises heads."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig, NormPlacement, Rope
from compute_svc.models.config_fields import ConfigFields, read_rope, read_ropes_by_kind, uniform, windowed
from compute_svc.models.example import GROUPED_SIZES, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM")

EXAMPLES = (
    Example(
        model_type="gemma",
        fields=GROUPED_SIZES,
        variants={
            "wide-heads": {"head_dim": 16},
            "mqa-untied-biases": {"num_key_value_heads": 1, "tie_word_embeddings": False, "attention_bias": True},
        },
    ),
    Example(
        model_type="gemma2",
        fields=GROUPED_SIZES,
        variants={
            "mixed-window": {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 20},
            "low-caps-mha": {
                "num_key_value_heads": 6,
                "attn_logit_softcapping": 2.0,
                "final_logit_softcapping": 3.0,
                "sliding_window": 150,
            },
            "no-caps": {
                "attn_logit_softcapping": None,
                "final_logit_softcapping": None,
                "sliding_window": 9,
                "tie_word_embeddings": False,
            },
        },
    ),
    Example(
        model_type="gemma3_text",
        fields=GROUPED_SIZES,
        variants={
            "mixed-window": {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 20, "sliding_window_pattern": 2},
            "mqa-linear-rope": {
                "num_key_value_heads": 1,
                "sliding_window": 9,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                },
            },
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A Gemma. Raises as `llama_like` and `windowed` do."""
    width = fields.count("head_dim", 256)
    bias = fields.flag("attention_bias", False)
    num_layers = fields.count("num_hidden_layers")
    if architecture == "GemmaForCausalLM":
        kinds, kind_of_layer = uniform(LayerKind(rope=read_rope(fields, width)), num_layers)
    elif architecture == "Gemma2ForCausalLM":
        rope, window = read_rope(fields, width), fields.count("sliding_window", 4096)
        alternating = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(num_layers)]
        kinds, kind_of_layer = windowed(fields, LayerKind(rope=rope), LayerKind(rope=rope, window=window), default=alternating)
    else:
        kinds, kind_of_layer = _kinds_of_third(fields, width)
    has_output_norms = architecture != "GemmaForCausalLM"
    activation = "hidden_activation" if fields.get("hidden_activation") else "hidden_act"
    config = llama_like(
        fields,
        architecture,
        head_dim=width,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        norm_offset=1.0,
        norm_placement=NormPlacement.SANDWICH if has_output_norms else NormPlacement.PRE,
        # Early configs of the first Gemma say gelu and mean its approximation.
        activation="gelu_tanh" if not has_output_norms else fields.activation(activation, "gelu_pytorch_tanh"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        # Theirs is the length after stretching.
        max_position_embeddings=fields.count("max_position_embeddings"),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head" if architecture == "Gemma3ForCausalLM" else None,
        attention_scale=fields.number("query_pre_attn_scalar", 256) ** -0.5 if has_output_norms else None,
        attention_softcap=fields.optional_number("attn_logit_softcapping"),
        logit_softcap=fields.optional_number("final_logit_softcapping"),
        embedding_scale=fields.count("hidden_size") ** 0.5,
    )
    if not has_output_norms:
        return config, WeightNames()
    return config, WeightNames(
        attention_output_norm="post_attention_layernorm", mlp_norm="pre_feedforward_layernorm", mlp_output_norm="post_feedforward_layernorm"
    )


def _kinds_of_third(fields: ConfigFields, width: int) -> tuple[tuple[LayerKind, ...], tuple[int, ...]]:
    """Layers with a window turn by a base of their own and are not stretched."""
    pattern = fields.count("sliding_window_pattern", 6)
    default = ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(fields.count("num_hidden_layers"))]
    ropes = read_ropes_by_kind(fields, width)
    if ropes is None:
        ropes = read_rope(fields, width, theta=1e6), Rope(dims=width, theta=fields.number("rope_local_base_freq", 10000.0))
    whole, local = ropes
    window = fields.count("sliding_window", 4096)
    return windowed(fields, LayerKind(rope=whole), LayerKind(rope=local, window=window), default=default)
