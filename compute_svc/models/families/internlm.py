"""InternLM 1 and 2: Llama's form, one flag for the biases of attention; 2 under other names, queries, keys and values fused group by group."""

from __future__ import annotations

from typing import Any

from compute_svc.models.config import LayerKind, ModelConfig, UnsupportedModel
from compute_svc.models.config_fields import ConfigFields, read_rope, uniform
from compute_svc.models.example import Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("InternLMForCausalLM", "InternLM2ForCausalLM")

EXAMPLES: tuple[Example, ...] = ()
"""transformers does not ship it: tests/oracle/references/internlm.py writes its checkpoints."""


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """An InternLM. Raises as `llama_like` does."""
    if architecture == "InternLMForCausalLM":
        bias = fields.flag("bias", True)
        return llama_like(fields, architecture, qkv_bias=bias, output_bias=bias, **_rotary_section(fields)), WeightNames()
    bias = fields.flag("bias", False)
    return llama_like(fields, architecture, qkv_bias=bias, output_bias=bias), WeightNames(
        embedding="model.tok_embeddings",
        lm_head="output",
        qkv=("attention.wqkv",),
        qkv_layout="groups",
        output="attention.wo",
        attention_norm="attention_norm",
        mlp_norm="ffn_norm",
        mlp_in=("feed_forward.w1", "feed_forward.w3"),
        mlp_down="feed_forward.w2",
    )


def _rotary_section(fields: ConfigFields) -> dict[str, Any]:
    """What the `rotary` object of later configs says; "dynamic" frequencies are the plain ones up to the trained length."""
    rotary = fields.section("rotary")
    if rotary is None:
        return {}
    if rotary.get("type") not in ("origin", "dynamic"):
        raise UnsupportedModel(f"{rotary.place}: type {rotary.get('type')!r} is not supported; supported: origin, dynamic")
    width = fields.count("hidden_size") // fields.count("num_attention_heads")
    kinds, kind_of_layer = uniform(LayerKind(rope=read_rope(fields, width, theta=rotary.number("base"))), fields.count("num_hidden_layers"))
    return {"kinds": kinds, "kind_of_layer": kind_of_layer}
