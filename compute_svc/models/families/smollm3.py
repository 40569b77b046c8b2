"""SmolLM 3: Llama's form, every fourth layer without positions."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, distinct, read_rope
from compute_svc.models.example import PADDED_SIZES, YARN_ROPE, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames
from compute_svc.models.weights import CheckpointError

ARCHITECTURES = ("SmolLM3ForCausalLM",)

EXAMPLES = (
    Example(
        model_type="smollm3",
        fields={**PADDED_SIZES, "num_hidden_layers": 4},
        variants={
            "fourth-without-positions": {},
            "second-without-positions-yarn": {"no_rope_layer_interval": 2, "rope_parameters": YARN_ROPE, "head_dim": 16},
            "window-without-positions-biases": {
                "no_rope_layers": [1, 0, 1, 0],
                "use_sliding_window": True,
                "sliding_window": 9,
                "attention_bias": True,
                "mlp_bias": True,
                "tie_word_embeddings": False,
            },
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A SmolLM 3. Raises as `llama_like` does."""
    num_layers = fields.count("num_hidden_layers")
    width = fields.count("head_dim", fields.count("hidden_size") // fields.count("num_attention_heads"))
    rope = read_rope(fields, width, theta=2000000.0)
    window = fields.optional_count("sliding_window") if fields.flag("use_sliding_window", False) else None
    turns = _turning_layers(fields, num_layers)
    types = fields.get("layer_types")
    if types is None:
        types = ["full_attention" if turns[layer] or window is None else "sliding_attention" for layer in range(num_layers)]
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != num_layers or any(name not in known for name in types):
        raise CheckpointError(f"{fields.place}: layer_types must list one of {', '.join(known)} for each layer")
    kinds, kind_of_layer = distinct(
        [
            LayerKind(rope=rope if turns[layer] else None, window=window if types[layer] == "sliding_attention" else None)
            for layer in range(num_layers)
        ]
    )
    bias = fields.flag("attention_bias", False)
    config = llama_like(
        fields,
        architecture,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )
    return config, WeightNames()


def _turning_layers(fields: ConfigFields, num_layers: int) -> list[bool]:
    """`no_rope_layers` says, against its name, 1 where a layer turns."""
    stated = fields.get("no_rope_layers")
    if stated is None:
        interval = fields.count("no_rope_layer_interval", 4)
        return [(layer + 1) % interval != 0 for layer in range(num_layers)]
    if not isinstance(stated, list) or len(stated) != num_layers or any(value not in (0, 1) for value in stated):
        raise CheckpointError(f"{fields.place}: no_rope_layers must list 0 or 1 for each layer")
    return [value == 1 for value in stated]
