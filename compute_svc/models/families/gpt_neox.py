"""GPT-NeoX and Pythia: part of each head turns, attention and MLP side by side unless the config says otherwise."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, context_limit, read_rope, uniform
from compute_svc.models.example import LINEAR_ROPE, SIZES, Example
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("GPTNeoXForCausalLM",)

EXAMPLES = (
    Example(
        model_type="gpt_neox",
        fields=SIZES,
        variants={
            "parallel": {"rotary_pct": 0.5},
            "serial-tied": {"use_parallel_residual": False, "tie_word_embeddings": True},
            "no-attention-biases-linear-rope": {"attention_bias": False, "rope_parameters": {**LINEAR_ROPE, "partial_rotary_factor": 1.0}},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A NeoX.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    hidden_size, num_heads, num_layers = (fields.count(name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    bias = fields.flag("attention_bias", True)
    theta = fields.number("rotary_emb_base", 10000.0)
    rope = read_rope(fields, hidden_size // num_heads, theta=theta, share=fields.number("rotary_pct", 0.25))
    kinds, kind_of_layer = uniform(LayerKind(rope=rope), num_layers)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.count("intermediate_size"),
        max_position_embeddings=context_limit(fields),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm="layer",
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        norm_bias=True,
        residual="parallel" if fields.flag("use_parallel_residual", True) else "serial",
        activation=fields.activation("hidden_act", "gelu"),
        gated=False,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=True,
    ).check(fields.place)
    return config, WeightNames(
        layer="gpt_neox.layers.{}.",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        lm_head="embed_out",
        qkv=("attention.query_key_value",),
        qkv_layout="groups",
        output="attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_down="mlp.dense_4h_to_h",
        ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    )
