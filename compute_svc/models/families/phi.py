"""Phi 1.5 and 2: part of each head turns, attention and MLP side by side behind one norm. Phi 3: Llama's form with fused projections."""

from __future__ import annotations

import math
from typing import Any

from compute_svc.layers.rotary_table import RopeScaling
from compute_svc.models.config import LayerKind, ModelConfig, Rope
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform
from compute_svc.models.example import SIZES, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("PhiForCausalLM", "Phi3ForCausalLM")


def _longrope_example(original: int, pairs: int) -> dict[str, Any]:
    """Two sets of divisors, of which transformers takes the second for every sequence longer than `original`."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.1 * pair for pair in range(pairs)],
        "long_factor": [2.0 + pair for pair in range(pairs)],
        "original_max_position_embeddings": original,
    }
    return {"original_max_position_embeddings": original, "rope_parameters": rope}


EXAMPLES = (
    Example(
        model_type="phi",
        fields={**SIZES, "num_key_value_heads": 2},
        variants={
            "gqa": {"partial_rotary_factor": 0.5},
            "mha-fully-turning": {"num_key_value_heads": 6, "partial_rotary_factor": 1.0, "hidden_act": "relu"},
        },
    ),
    Example(
        model_type="phi3",
        fields={**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 0},
        variants={
            "window": {"sliding_window": 11},
            "mha-partly-turning": {"num_key_value_heads": 6, "partial_rotary_factor": 0.5, "tie_word_embeddings": True},
            # transformers changes sets between calls, this engine never: the long one where every sequence is longer, the short one where
            # none can be.
            "longrope": _longrope_example(12, 4),
            "longrope-not-longer-partly-turning": {"partial_rotary_factor": 0.75, **_longrope_example(512, 3)},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A Phi.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    return _read_third(fields, architecture) if architecture == "Phi3ForCausalLM" else _read_second(fields, architecture)


def _read_second(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    fields.require("qk_layernorm", False)
    width = fields.count("hidden_size") // fields.count("num_attention_heads")
    kinds, kind_of_layer = uniform(LayerKind(rope=read_rope(fields, width, share=0.5)), fields.count("num_hidden_layers"))
    config = llama_like(
        fields,
        architecture,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm="layer",
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        norm_bias=True,
        residual="parallel",
        shared_norm=True,
        activation=fields.activation("hidden_act", "gelu_new"),
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        lm_head_bias=True,
    )
    return config, WeightNames(final_norm="model.final_layernorm", output="self_attn.dense", mlp_in=("mlp.fc1",), mlp_down="mlp.fc2")


def _read_third(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    num_layers = fields.count("num_hidden_layers")
    width = fields.count("hidden_size") // fields.count("num_attention_heads")
    kind = LayerKind(rope=_longrope(fields, width) or read_rope(fields, width), window=fields.optional_count("sliding_window"))
    kinds, kind_of_layer = uniform(kind, num_layers)
    names = WeightNames(qkv=("self_attn.qkv_proj",), mlp_in=("mlp.gate_up_proj",))
    return llama_like(fields, architecture, kinds=kinds, kind_of_layer=kind_of_layer), names


def _longrope(fields: ConfigFields, head_dim: int) -> Rope | None:
    """The frequencies of a model stretched by LongRoPE; None if it is not.

    There are two sets of them, one up to the original length and one beyond, and KV computed with one is of no use to the other. A request
    does not change sets on its way: the set for the longest request that is served is used for all.
    """
    section = fields.section("rope_parameters") or fields.section("rope_scaling")
    if section is None or (section.get("rope_type") or section.get("type")) not in ("longrope", "su"):
        return None
    longest = fields.count("max_position_embeddings")
    place = fields if section.get("original_max_position_embeddings") is None else section
    original = place.count("original_max_position_embeddings", longest, at_least=2)
    served = longest if fields.max_tokens is None else min(longest, fields.max_tokens)
    name = "long_factor" if served > original else "short_factor"
    dims = int(head_dim * (section.optional_number("partial_rotary_factor") or fields.number("partial_rotary_factor", 1.0)))
    stretch = section.optional_number("factor") or longest / original
    height = section.optional_number("attention_factor")
    if height is None:
        height = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    scaling = RopeScaling("longrope", divisors=section.numbers(name, dims // 2), amplitude=height)
    return Rope(dims=dims, theta=_theta(fields, section), scaling=scaling)


def _theta(fields: ConfigFields, section: ConfigFields) -> float:
    return section.number("rope_theta") if section.get("rope_theta") is not None else fields.number("rope_theta", 10000.0)
