"""Qwen 2, 2.5 and 3, with and without experts: biases on query, key and value in 2; normalised query and key heads in 3."""

from __future__ import annotations

from compute_svc.models.config import Experts, LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, read_rope, windowed
from compute_svc.models.example import EXPERTS, GROUPED_SIZES, YARN_ROPE, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")

_WINDOW = {"use_sliding_window": True, "sliding_window": 9}

EXAMPLES = (
    Example(
        model_type="qwen2",
        fields=GROUPED_SIZES,
        variants={
            "tied": {"tie_word_embeddings": True, "head_dim": ...},
            "window": {"head_dim": ..., **_WINDOW, "max_window_layers": 0},
            "window-above-full": {"head_dim": ..., **_WINDOW, "max_window_layers": 1},
            "mqa-wide-heads-yarn": {"head_dim": 16, "num_key_value_heads": 1, "rope_parameters": YARN_ROPE},
        },
    ),
    Example(
        model_type="qwen2_moe",
        fields={**GROUPED_SIZES, **EXPERTS, "shared_expert_intermediate_size": 40},
        variants={
            "shared-expert": {},
            "sparse-every-second": {"decoder_sparse_step": 2, "norm_topk_prob": True},
            "dense-first-window": {"mlp_only_layers": [0], **_WINDOW, "max_window_layers": 1},
        },
    ),
    Example(
        model_type="qwen3",
        fields=GROUPED_SIZES,
        variants={
            "wide-heads": {"head_dim": 16},
            "mqa-biases-tied": {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True},
            "mixed-window": {**_WINDOW, "max_window_layers": 2, "num_key_value_heads": 6},
        },
    ),
    Example(
        model_type="qwen3_moe",
        fields={**GROUPED_SIZES, **EXPERTS},
        variants={
            "wide-heads": {"head_dim": 16, "norm_topk_prob": True},
            "dense-among-sparse": {"mlp_only_layers": [1], "attention_bias": True, "tie_word_embeddings": True},
            "mha-one-expert": {"num_key_value_heads": 6, "num_experts_per_tok": 1, "decoder_sparse_step": 2},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A Qwen. Raises as `llama_like` and `windowed` do."""
    is_third = architecture.startswith("Qwen3")
    has_experts = "Moe" in architecture
    hidden_size, num_heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    width = fields.count("head_dim", 128 if architecture == "Qwen3ForCausalLM" else hidden_size // num_heads)
    rope = read_rope(fields, width)
    window = fields.count("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    sliding = None if window is None else LayerKind(rope=rope, window=window)
    kinds, kind_of_layer = windowed(fields, LayerKind(rope=rope), sliding, default=_layer_types(fields, window, has_experts=has_experts))
    bias = fields.flag("attention_bias", False) if is_third else fields.flag("qkv_bias", True)
    config = llama_like(
        fields,
        architecture,
        head_dim=width,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        qkv_bias=bias,
        output_bias=bias and is_third,
        qk_norm="head" if is_third else None,
        experts=_experts(fields, architecture) if has_experts else None,
    )
    return config, WeightNames()


def _layer_types(fields: ConfigFields, window: int | None, *, has_experts: bool) -> list[str]:
    """What stands for absent layer_types: the first max_window_layers see everything. Qwen3 with experts has its window everywhere."""
    num_layers = fields.count("num_hidden_layers")
    full = num_layers if window is None else min(num_layers, fields.count("max_window_layers", 0 if has_experts else 28, at_least=0))
    return ["full_attention"] * full + ["sliding_attention"] * (num_layers - full)


def _experts(fields: ConfigFields, architecture: str) -> Experts:
    num_layers = fields.count("num_hidden_layers")
    every = fields.count("decoder_sparse_step", 1)
    dense = fields.indices("mlp_only_layers")
    shared = fields.count("shared_expert_intermediate_size") if architecture == "Qwen2MoeForCausalLM" else 0
    return Experts(
        count=fields.count("num_experts" if "num_experts" in fields else "num_local_experts"),
        per_token=fields.count("num_experts_per_tok"),
        intermediate_size=fields.count("moe_intermediate_size"),
        normalise=fields.flag("norm_topk_prob", False),
        shared_size=shared,
        shared_gate=shared > 0,
        layers=frozenset(layer for layer in range(num_layers) if layer not in dense and (layer + 1) % every == 0),
    )
