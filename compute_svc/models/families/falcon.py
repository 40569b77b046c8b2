"""Falcon: 7B with one key head and one norm, 40B, 180B and 11B with groups, serial layers where the config asks for them.

The small RW models have ALiBi in place of rotary positions, rounded to bfloat16 position by position.
"""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig, alibi_slopes
from compute_svc.models.config_fields import ConfigFields, context_limit, read_rope, uniform
from compute_svc.models.example import SIZES, Example
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("FalconForCausalLM", "RWForCausalLM")

# transformers counts slopes twice where it computes attention "eager".
_RW = {"alibi": True, "multi_query": False, "parallel_attn": False, "attn_implementation": "sdpa"}

EXAMPLES = (
    Example(
        model_type="falcon",
        fields={name: size for name, size in SIZES.items() if name != "intermediate_size"},
        variants={
            "mqa-parallel": {},
            "groups-two-norms": {"num_kv_heads": 2, "new_decoder_architecture": True},
            "groups-one-norm-untied": {
                "num_kv_heads": 3,
                "new_decoder_architecture": True,
                "num_ln_in_parallel_attn": 1,
                "tie_word_embeddings": False,
                "ffn_hidden_size": 70,
            },
            "mha-serial-biases": {"multi_query": False, "parallel_attn": False, "bias": True},
            "rw-slopes": {**_RW, "bias": True},
            "rw-slopes-odd-heads-untied": {**_RW, "num_attention_heads": 3, "tie_word_embeddings": False},
            "old-names": {},
        },
        published={
            "old-names": {
                "architectures": ["RWForCausalLM"],
                "num_attention_heads": ...,
                "n_head": 6,
                "num_hidden_layers": ...,
                "n_layer": 3,
            },
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A Falcon.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    hidden_size = fields.count("hidden_size")
    num_heads = fields.count("num_attention_heads" if "num_attention_heads" in fields else "n_head")
    num_layers = fields.count("num_hidden_layers" if "num_hidden_layers" in fields else "n_layer")
    is_new, shares_keys = fields.flag("new_decoder_architecture", False), fields.flag("multi_query", True)
    is_parallel = is_new or fields.flag("parallel_attn", True)
    num_norms = fields.optional_count("num_ln_in_parallel_attn") or (2 if is_new else 1)
    head_dim = hidden_size // num_heads
    has_slopes = fields.flag("alibi", False)
    bias = fields.flag("bias", False)
    kinds, kind_of_layer = uniform(LayerKind(rope=None if has_slopes else read_rope(fields, head_dim)), num_layers)
    own_heads = num_heads if is_new or not shares_keys else 1
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.count("num_kv_heads", num_heads) if is_new else own_heads,
        head_dim=head_dim,
        intermediate_size=fields.optional_count("ffn_hidden_size") or 4 * hidden_size,
        max_position_embeddings=context_limit(fields, 2048),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        residual="parallel" if is_parallel else "serial",
        shared_norm=is_parallel and num_norms == 1,
        activation=fields.activation("activation", "gelu"),
        gated=False,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        slopes=alibi_slopes(num_heads) if has_slopes else None,
        rounded_slopes=has_slopes,
    ).check(fields.place)
    has_two = is_parallel and num_norms == 2
    return config, WeightNames(
        root="transformer.",
        layer="transformer.h.{}.",
        embedding="transformer.word_embeddings",
        final_norm="transformer.ln_f",
        qkv=("self_attention.query_key_value",),
        qkv_layout="groups",
        output="self_attention.dense",
        attention_norm="ln_attn" if has_two else "input_layernorm",
        mlp_norm="ln_mlp" if has_two else "post_attention_layernorm",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_down="mlp.dense_4h_to_h",
    )
