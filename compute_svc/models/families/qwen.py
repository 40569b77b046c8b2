"""Qwen 1: Llama's form under GPT's names, biases on query, key and value.

Past the length it was trained with it would turn by other frequencies and scale its queries; no request is longer than that here.
"""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform
from compute_svc.models.example import Example
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("QWenLMHeadModel",)

EXAMPLES: tuple[Example, ...] = ()
"""transformers does not ship it: tests/oracle/references/qwen.py writes its checkpoints."""


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A Qwen 1.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    hidden_size, num_heads, num_layers = (fields.count(name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head_dim = fields.count("kv_channels", hidden_size // num_heads)
    rope = read_rope(fields, head_dim, theta=fields.number("rotary_emb_base", 10000.0), share=fields.number("rotary_pct", 1.0))
    kinds, kind_of_layer = uniform(LayerKind(rope=rope), num_layers)
    has_biases = not fields.flag("no_bias", True)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        # The config counts gate and up projection together.
        intermediate_size=fields.count("intermediate_size") // 2,
        max_position_embeddings=min(fields.count("seq_length"), fields.count("max_position_embeddings", fields.count("seq_length"))),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm_eps=fields.number("layer_norm_epsilon", 1e-6),
        qkv_bias=True,
        output_bias=has_biases,
        mlp_bias=has_biases,
    ).check(fields.place)
    return config, WeightNames(
        layer="transformer.h.{}.",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        qkv=("attn.c_attn",),
        output="attn.c_proj",
        attention_norm="ln_1",
        mlp_norm="ln_2",
        # The second is the gate.
        mlp_in=("mlp.w2", "mlp.w1"),
        mlp_down="mlp.c_proj",
        ignored=(".rotary_emb.inv_freq",),
    )
