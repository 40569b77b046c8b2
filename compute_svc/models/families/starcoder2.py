"""StarCoder 2: rotary positions, layer norms, plain MLP, one flag for all biases, a window in every layer if the config has one."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform
from compute_svc.models.example import GROUPED_SIZES, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("Starcoder2ForCausalLM",)

EXAMPLES = (
    Example(
        model_type="starcoder2",
        fields={name: size for name, size in GROUPED_SIZES.items() if name != "head_dim"},
        variants={
            "gqa": {},
            "window-untied": {"sliding_window": 9, "num_key_value_heads": 6, "tie_word_embeddings": False},
            "no-biases-odd-heads": {"use_bias": False, "num_attention_heads": 8, "num_key_value_heads": 1, "norm_epsilon": 1e-3},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A StarCoder 2. Raises as `llama_like` does."""
    bias = fields.flag("use_bias", True)
    rope = read_rope(fields, fields.count("hidden_size") // fields.count("num_attention_heads"))
    kind = LayerKind(rope=rope, window=fields.optional_count("sliding_window"))
    kinds, kind_of_layer = uniform(kind, fields.count("num_hidden_layers"))
    config = llama_like(
        fields,
        architecture,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        norm="layer",
        norm_eps=fields.number("norm_epsilon", 1e-5),
        norm_bias=True,
        activation=fields.activation("hidden_act", "gelu_pytorch_tanh"),
        gated=False,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
    )
    return config, WeightNames(mlp_in=("mlp.c_fc",), mlp_down="mlp.c_proj")
