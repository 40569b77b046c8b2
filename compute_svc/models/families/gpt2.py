"""GPT-2 and GPT-BigCode: learnt positions, layer norms, plain MLP; BigCode's queries share one key head."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, uniform
from compute_svc.models.example import GPT_SIZES, Example
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("GPT2LMHeadModel", "GPTBigCodeForCausalLM")

EXAMPLES = (
    Example(
        model_type="gpt2",
        fields=GPT_SIZES,
        variants={"tied": {}, "untied-relu": {"tie_word_embeddings": False, "n_inner": 70, "activation_function": "relu"}},
    ),
    Example(
        model_type="gpt_bigcode",
        fields=GPT_SIZES,
        variants={"mqa": {}, "mha-untied": {"multi_query": False, "tie_word_embeddings": False, "n_inner": 70}},
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A GPT-2 or a BigCode.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    is_gpt2 = architecture == "GPT2LMHeadModel"
    fields.require("scale_attn_weights", True)
    fields.require("add_cross_attention", False)
    if is_gpt2:
        fields.require("scale_attn_by_inverse_layer_idx", False)
    shares_keys = not is_gpt2 and fields.flag("multi_query", True)
    hidden_size, num_heads, num_layers = fields.count("n_embd"), fields.count("n_head"), fields.count("n_layer")
    kinds, kind_of_layer = uniform(LayerKind(), num_layers)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=1 if shares_keys else num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.optional_count("n_inner") or 4 * hidden_size,
        max_position_embeddings=fields.count("n_positions"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        activation=fields.activation("activation_function", "gelu_new" if is_gpt2 else "gelu_pytorch_tanh"),
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        position_offset=0,
    ).check(fields.place)
    return config, WeightNames(
        root="transformer.",
        layer="transformer.h.{}.",
        embedding="transformer.wte",
        position_embedding="transformer.wpe",
        final_norm="transformer.ln_f",
        qkv=("attn.c_attn",),
        # BigCode lays the heads out one by one where each has keys of its own.
        qkv_layout="blocks" if is_gpt2 or shares_keys else "groups",
        output="attn.c_proj",
        attention_norm="ln_1",
        mlp_norm="ln_2",
        mlp_in=("mlp.c_fc",),
        mlp_down="mlp.c_proj",
        transposed=is_gpt2,
        ignored=(".attn.bias", ".attn.masked_bias"),
    )
