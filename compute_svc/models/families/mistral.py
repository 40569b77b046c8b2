"""Mistral and Mixtral: Llama's form, with a sliding window in every layer if the config has one; Mixtral has experts in every layer."""

from __future__ import annotations

from compute_svc.models.config import Experts, LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform
from compute_svc.models.example import GROUPED_SIZES, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("MistralForCausalLM", "MixtralForCausalLM")

EXAMPLES = (
    Example(
        model_type="mistral",
        fields=GROUPED_SIZES,
        variants={
            "short-window": {"sliding_window": 11},
            "long-window-odd-heads": {"sliding_window": 150, "head_dim": 12},
            "no-window-tied": {"sliding_window": None, "tie_word_embeddings": True},
            "wide-heads-mqa": {"sliding_window": None, "num_key_value_heads": 1, "head_dim": 20},
        },
    ),
    Example(
        model_type="mixtral",
        fields={**GROUPED_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
        variants={
            "gqa": {},
            "mha-window-one-expert": {"num_key_value_heads": 6, "sliding_window": 9, "num_experts_per_tok": 1},
            "wide-heads-tied": {"head_dim": 12, "num_local_experts": 3, "num_experts_per_tok": 3, "tie_word_embeddings": True},
        },
    ),
)

# What Mistral takes if a config does not mention it; null is no window.
_DEFAULT_WINDOW = 4096


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A Mistral or a Mixtral. Raises as `llama_like` does."""
    is_mixtral = architecture == "MixtralForCausalLM"
    window = fields.optional_count("sliding_window") if "sliding_window" in fields or is_mixtral else _DEFAULT_WINDOW
    width = fields.count("head_dim", fields.count("hidden_size") // fields.count("num_attention_heads"))
    num_layers = fields.count("num_hidden_layers")
    rope = read_rope(fields, width, theta=1e6 if is_mixtral else 10000.0)
    kinds, kind_of_layer = uniform(LayerKind(rope=rope, window=window), num_layers)
    if not is_mixtral:
        return llama_like(fields, architecture, kinds=kinds, kind_of_layer=kind_of_layer), WeightNames()
    experts = Experts(
        count=fields.count("num_local_experts"),
        per_token=fields.count("num_experts_per_tok"),
        intermediate_size=fields.count("intermediate_size"),
        normalise=True,
        layers=frozenset(range(num_layers)),
    )
    names = WeightNames(router="block_sparse_moe.gate", expert="block_sparse_moe.experts.{}.", expert_in=("w1", "w3"), expert_down="w2")
    return llama_like(fields, architecture, kinds=kinds, kind_of_layer=kind_of_layer, experts=experts), names
