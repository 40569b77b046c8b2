"""ChatGLM 2 and 3 and GLM-4 as first published: half of each head turns, neighbours together; projections fused, few key heads."""

from __future__ import annotations

from compute_svc.layers.rotary_table import RopeScaling
from compute_svc.models.config import LayerKind, ModelConfig, Rope, UnsupportedModel
from compute_svc.models.config_fields import ConfigFields, uniform
from compute_svc.models.example import Example
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("ChatGLMModel", "ChatGLMForConditionalGeneration")

EXAMPLES: tuple[Example, ...] = ()
"""transformers does not ship it: tests/oracle/references/chatglm.py writes its checkpoints."""


# Of ChatGLM 2 and 3.
_VOCAB_SIZE_OF_CHATGLM = 65024


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A ChatGLM.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    fields.require("apply_residual_connection_post_layernorm", False)
    for name in ("original_rope", "rmsnorm", "post_layer_norm"):
        fields.require(name, True)
    fields.require("pre_seq_len", None)
    hidden_size, num_heads, num_layers = fields.count("hidden_size"), fields.count("num_attention_heads"), fields.count("num_layers")
    head_dim = fields.count("kv_channels", hidden_size // num_heads)
    kinds, kind_of_layer = uniform(LayerKind(rope=_rope(fields, head_dim // 2)), num_layers)
    bias = fields.flag("add_bias_linear", False)
    grouped = fields.flag("multi_query_attention", False)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("padded_vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.count("multi_query_group_num", 1) if grouped else num_heads,
        head_dim=head_dim,
        intermediate_size=fields.count("ffn_hidden_size"),
        max_position_embeddings=fields.count("seq_length"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm_eps=fields.number("layernorm_epsilon", 1e-5),
        qkv_bias=bias or fields.flag("add_qkv_bias", False),
        output_bias=bias,
        mlp_bias=bias,
    ).check(fields.place)
    return config, WeightNames(
        layer="transformer.encoder.layers.{}.",
        embedding="transformer.embedding.word_embeddings",
        final_norm="transformer.encoder.final_layernorm",
        lm_head="transformer.output_layer",
        qkv=("self_attention.query_key_value",),
        # Without key groups, each head's query, key and value lie together.
        qkv_layout="blocks" if grouped else "groups",
        output="self_attention.dense",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_down="mlp.dense_4h_to_h",
        ignored=("rotary_pos_emb.inv_freq",),
    )


def _rope(fields: ConfigFields, dims: int) -> Rope:
    """rope_ratio divides positions in chatglm2-6b-32k, and in all later releases multiplies the base.

    Nothing else in a config of ChatGLM 2 or 3 tells the two apart but the model's name; GLM-4 has another vocabulary than they.
    """
    ratio = fields.number("rope_ratio", 1.0)
    names = " ".join(_names_in(fields)).lower()
    if ratio == 1.0 or fields.get("padded_vocab_size") != _VOCAB_SIZE_OF_CHATGLM or "chatglm3" in names:
        return Rope(dims=dims, theta=10000.0 * ratio, interleaved=True)
    if "chatglm2" in names:
        return Rope(dims=dims, scaling=RopeScaling("linear", ratio), interleaved=True)
    raise UnsupportedModel(
        f"{fields.place}: rope_ratio {ratio:g} divides positions in chatglm2-6b-32k and multiplies the base in ChatGLM 3, and nothing here tells "
        'which of the two this is; set _name_or_path to "THUDM/chatglm2-6b-32k" or "THUDM/chatglm3-6b-32k"'
    )


def _names_in(fields: ConfigFields) -> list[str]:
    """What the config says of where the model is from."""
    code = fields.get("auto_map")
    places = [fields.get("_name_or_path"), *(code.values() if isinstance(code, dict) else [])]
    return [place for place in places if isinstance(place, str)]
