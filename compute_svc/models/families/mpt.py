"""MPT: scores fall with distance (ALiBi), no biases at all."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig, UnsupportedModel, alibi_slopes
from compute_svc.models.config_fields import ConfigFields, uniform
from compute_svc.models.example import Example
from compute_svc.models.weight_names import WeightNames
from compute_svc.models.weights import CheckpointError

ARCHITECTURES = ("MPTForCausalLM", "MptForCausalLM")

EXAMPLES = (
    Example(
        model_type="mpt",
        fields={"vocab_size": 97, "d_model": 48, "n_layers": 3, "n_heads": 6, "max_seq_len": 512},
        variants={
            "six-heads": {},
            "clipped": {"n_heads": 4, "attn_config": {"clip_qkv": 1.0, "softmax_scale": 0.2}},
            "old-name": {"n_heads": 3},
        },
        published={"old-name": {"architectures": ["MPTForCausalLM"]}},
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """An MPT.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    fields.require("no_bias", True)
    fields.require("logit_scale", None)
    attention = fields.section("attn_config")
    if attention is None:
        raise CheckpointError(f"{fields.place} lacks attn_config")
    if not attention.flag("alibi", True):
        raise UnsupportedModel(f"{attention.place}: alibi false is not supported; supported: true")
    for name in ("qk_ln", "prefix_lm"):
        attention.require(name, False)
    hidden_size, num_heads, num_layers = fields.count("d_model"), fields.count("n_heads"), fields.count("n_layers")
    kinds, kind_of_layer = uniform(LayerKind(), num_layers)
    num_kv_heads = {"multihead_attention": num_heads, "multiquery_attention": 1}.get(attention.word("attn_type") or "multihead_attention")
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or attention.count("kv_n_heads"),
        head_dim=hidden_size // num_heads,
        intermediate_size=int(fields.number("expansion_ratio", 4) * hidden_size),
        max_position_embeddings=fields.count("max_seq_len"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        activation="gelu",
        gated=False,
        qkv_limit=attention.optional_number("clip_qkv"),
        attention_scale=attention.optional_number("softmax_scale"),
        slopes=_slopes(num_heads, attention.number("alibi_bias_max", 8)),
    ).check(fields.place)
    return config, WeightNames(
        root="transformer.",
        layer="transformer.blocks.{}.",
        embedding="transformer.wte",
        final_norm="transformer.norm_f",
        qkv=("attn.Wqkv",),
        output="attn.out_proj",
        attention_norm="norm_1",
        mlp_norm="norm_2",
        mlp_in=("ffn.up_proj",),
        mlp_down="ffn.down_proj",
    )


def _slopes(num_heads: int, max_bias: float) -> tuple[float, ...]:
    """For a number that is no power of two: of the power above, every second one first."""
    above = 1 << (num_heads - 1).bit_length()
    slopes = alibi_slopes(above, max_bias=max_bias)
    return slopes if above == num_heads else (slopes[1::2] + slopes[0::2])[:num_heads]
