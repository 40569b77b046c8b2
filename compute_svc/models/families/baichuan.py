"""Baichuan 1 and 2: Llama's form with fused projections; 7B turns, 13B's scores fall with distance (ALiBi); Baichuan 2 normalises its head's rows."""

from __future__ import annotations

from compute_svc.models.config import LayerKind, ModelConfig, alibi_slopes
from compute_svc.models.config_fields import ConfigFields, context_limit, read_rope, uniform
from compute_svc.models.example import Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

# The first 7B writes its name with a capital C; everything else of the family without.
ARCHITECTURES = ("BaiChuanForCausalLM", "BaichuanForCausalLM")

EXAMPLES: tuple[Example, ...] = ()
"""transformers does not ship it: tests/oracle/references/baichuan.py writes its checkpoints."""

# The two 13B say the same in their configs but for the vocabulary. A model tuned from either has these rows and perhaps a few more.
_VOCAB_SIZE_OF_SECOND = 125696


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A Baichuan. A config without max_position_embeddings is a 13B's, one with the second's vocabulary or more the second 13B's.

    Raises as `llama_like` does.
    """
    num_heads, vocab_size = fields.count("num_attention_heads"), fields.count("vocab_size")
    has_slopes = "max_position_embeddings" not in fields
    rope = None if has_slopes else read_rope(fields, fields.count("hidden_size") // num_heads)
    kinds, kind_of_layer = uniform(LayerKind(rope=rope), fields.count("num_hidden_layers"))
    config = llama_like(
        fields,
        architecture,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        slopes=alibi_slopes(num_heads) if has_slopes else None,
        max_position_embeddings=fields.count("model_max_length") if has_slopes else context_limit(fields),
        # A 7B that turns and calls itself as the 13B does is the second.
        normalised_head=vocab_size >= _VOCAB_SIZE_OF_SECOND if has_slopes else architecture == "BaichuanForCausalLM",
    )
    return config, WeightNames(qkv=("self_attn.W_pack",))
