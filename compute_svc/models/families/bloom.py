"""BLOOM: scores fall with distance (ALiBi), embeddings are normalised."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig, alibi_slopes
from compute_svc.models.config_fields import ConfigFields, uniform
from compute_svc.models.example import Example
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("BloomForCausalLM",)

EXAMPLES = (
    Example(
        model_type="bloom",
        fields={"vocab_size": 97, "hidden_size": 48, "n_layer": 3, "n_head": 6},
        variants={"six-heads": {}, "four-heads-untied": {"n_head": 4, "tie_word_embeddings": False}},
    ),
)

# The models were trained on so many tokens; the config does not say it, and distance has no limit.
_TRAINED_TOKENS = 2048


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A BLOOM.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    fields.require("apply_residual_connection_post_layernorm", False)
    hidden_name = "hidden_size" if "hidden_size" in fields else "n_embed"
    hidden_size, num_heads, num_layers = fields.count(hidden_name), fields.count("n_head"), fields.count("n_layer")
    kinds, kind_of_layer = uniform(LayerKind(), num_layers)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=fields.count("seq_length", _TRAINED_TOKENS),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        slopes=alibi_slopes(num_heads),
        embedding_norm=True,
    ).check(fields.place)
    return config, WeightNames(
        root="transformer.",
        layer="transformer.h.{}.",
        embedding="transformer.word_embeddings",
        embedding_norm="transformer.word_embeddings_layernorm",
        final_norm="transformer.ln_f",
        qkv=("self_attention.query_key_value",),
        qkv_layout="groups",
        output="self_attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_down="mlp.dense_4h_to_h",
    )
