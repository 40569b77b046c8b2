"""OPT: learnt positions that begin at two, relu; the smallest but one narrows its embeddings and normalises sums."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig, NormPlacement
from compute_svc.models.config_fields import ConfigFields, uniform
from compute_svc.models.example import SIZES, Example
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("OPTForCausalLM",)

EXAMPLES = (
    Example(
        model_type="opt",
        fields={**{name: size for name, size in SIZES.items() if name != "intermediate_size"}, "ffn_dim": 80, "word_embed_proj_dim": 48},
        variants={
            "norms-before": {},
            "norms-behind-narrow": {"word_embed_proj_dim": 20, "do_layer_norm_before": False},
            "no-biases-untied": {"enable_bias": False, "tie_word_embeddings": False, "activation_function": "gelu"},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """An OPT.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    fields.require("_remove_final_layer_norm", False)
    fields.require("layer_norm_elementwise_affine", True)
    hidden_size, num_heads, num_layers = (fields.count(name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    width = fields.optional_count("word_embed_proj_dim") or hidden_size
    bias = fields.flag("enable_bias", True)
    before = fields.flag("do_layer_norm_before", True)
    kinds, kind_of_layer = uniform(LayerKind(), num_layers)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.count("ffn_dim"),
        max_position_embeddings=fields.count("max_position_embeddings"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm="layer",
        norm_eps=1e-5,
        norm_bias=True,
        norm_placement=NormPlacement.PRE if before else NormPlacement.POST_LN,
        activation=fields.activation("activation_function", "relu"),
        gated=False,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        position_offset=2,
        embedding_size=None if width == hidden_size else width,
        final_norm=before,
    ).check(fields.place)
    norms = ("self_attn_layer_norm", "final_layer_norm")
    return config, WeightNames(
        root="model.",
        layer="model.decoder.layers.{}.",
        embedding="model.decoder.embed_tokens",
        position_embedding="model.decoder.embed_positions",
        embedding_in="model.decoder.project_in",
        embedding_out="model.decoder.project_out",
        final_norm="model.decoder.final_layer_norm",
        output="self_attn.out_proj",
        attention_norm=norms[0],
        attention_output_norm=norms[0],
        mlp_norm=norms[1],
        mlp_output_norm=norms[1],
        mlp_in=("fc1",),
        mlp_down="fc2",
    )
