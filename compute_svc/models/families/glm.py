"""GLM-4 as transformers ships it: half of each head turns, neighbours together; the newer one has norms behind attention and MLP too."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("GlmForCausalLM", "Glm4ForCausalLM")


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A GLM. Raises as `llama_like` does."""
    is_newer = architecture == "Glm4ForCausalLM"
    width = fields.count("head_dim", 128)
    rope = read_rope(fields, width, share=0.5, interleaved=True)
    kinds, kind_of_layer = uniform(LayerKind(rope=rope), fields.count("num_hidden_layers"))
    config = llama_like(
        fields,
        architecture,
        head_dim=width,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        qkv_bias=fields.flag("attention_bias", False),
        output_norms=is_newer,
    )
    names = WeightNames(
        mlp_in=("mlp.gate_up_proj",), attention_output_norm="post_self_attn_layernorm", mlp_output_norm="post_mlp_layernorm"
    )
    return config, names
