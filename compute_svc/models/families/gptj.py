"""GPT-J: neighbours turn together, attention and MLP side by side behind one norm."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig, Rope
from compute_svc.models.config_fields import ConfigFields, uniform
from compute_svc.models.example import GPT_SIZES, Example
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("GPTJForCausalLM",)

EXAMPLES = (
    Example(
        model_type="gptj",
        fields={**GPT_SIZES, "rotary_dim": 4},
        variants={"partly-turning": {}, "fully-turning": {"rotary_dim": 12, "n_head": 4, "n_inner": 70}},
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A GPT-J.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    hidden_size, num_heads, num_layers = fields.count("n_embd"), fields.count("n_head"), fields.count("n_layer")
    head_dim = hidden_size // num_heads
    rope = Rope(dims=fields.optional_count("rotary_dim") or head_dim, interleaved=True)
    kinds, kind_of_layer = uniform(LayerKind(rope=rope), num_layers)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=fields.optional_count("n_inner") or 4 * hidden_size,
        max_position_embeddings=fields.count("n_positions"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        residual="parallel",
        shared_norm=True,
        activation=fields.activation("activation_function", "gelu_new"),
        gated=False,
        mlp_bias=True,
        lm_head_bias=True,
    ).check(fields.place)
    return config, WeightNames(
        layer="transformer.h.{}.",
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        output="attn.out_proj",
        attention_norm="ln_1",
        mlp_in=("mlp.fc_in",),
        mlp_down="mlp.fc_out",
        ignored=(".attn.bias", ".attn.masked_bias"),
    )
