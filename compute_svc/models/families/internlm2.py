"""InternLM 2: Llama's form under other names, queries, keys and values fused group by group."""

from __future__ import annotations

from compute_svc.models.config import ModelConfig
from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("InternLM2ForCausalLM",)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """An InternLM 2. Raises as `llama_like` does."""
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
