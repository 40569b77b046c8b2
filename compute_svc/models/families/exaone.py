"""EXAONE 4: norms behind attention and MLP and none before, normalised query and key heads; beside layers with a window, the others do not turn."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig, NormPlacement
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform, windowed
from compute_svc.models.example import GROUPED_SIZES, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("Exaone4ForCausalLM",)

EXAMPLES = (
    Example(
        model_type="exaone4",
        fields={**GROUPED_SIZES, "sliding_window": 9},
        variants={
            "mixed-window": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            "fourth-without-window": {"num_hidden_layers": 4, "num_key_value_heads": 6, "tie_word_embeddings": True},
            "no-window": {"sliding_window": None, "layer_types": ["full_attention"] * 3, "num_key_value_heads": 1},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """An EXAONE 4. Raises as `llama_like` and `windowed` do."""
    num_layers = fields.count("num_hidden_layers")
    rope = read_rope(fields, fields.count("head_dim", fields.count("hidden_size") // fields.count("num_attention_heads")))
    window = fields.optional_count("sliding_window") if "sliding_window" in fields else 4096
    if window is None:
        kinds, kind_of_layer = uniform(LayerKind(rope=rope), num_layers)
    else:
        # Published configs that list no layer_types say so by a number; where it is a pattern of letters they list them too.
        pattern = 4 if fields.get("layer_types") is not None else fields.count("sliding_window_pattern", 4)
        default = ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(num_layers)]
        kinds, kind_of_layer = windowed(fields, LayerKind(), LayerKind(rope=rope, window=window), default=default)
    config = llama_like(
        fields,
        architecture,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm_eps=fields.number("rms_norm_eps", 1e-5),
        norm_placement=NormPlacement.POST,
        qk_norm="head",
    )
    return config, WeightNames(attention_output_norm="post_attention_layernorm", mlp_output_norm="post_feedforward_layernorm")
