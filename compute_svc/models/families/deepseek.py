"""DeepSeek V2 and V3: keys and values from a latent vector (MLA), first layers dense, then experts, some of which compute every token.

V2 scores experts by softmax, V3 by sigmoid with a learnt correction; both may take them from some groups of experts alone. Every head's keys and
values are made from the latent and kept: simple, and many times the memory that the latent itself would take.
"""

from __future__ import annotations

from compute_svc.layers.router import GroupLimit
from compute_svc.models.config import Experts, LatentAttention, LayerKind, ModelConfig, Rope, UnsupportedModel
from compute_svc.models.config_fields import ConfigFields, context_limit, read_rope, uniform, yarn_scale
from compute_svc.models.example import SIZES, YARN_ROPE, Example
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")

_LATENT_SIZES = {"kv_lora_rank": 20, "q_lora_rank": None, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
_EXPERT_SIZES = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
_EXAMPLE = {**SIZES, "num_key_value_heads": 6, **_LATENT_SIZES, **_EXPERT_SIZES}
_SCALED_ROPE = {**YARN_ROPE, "mscale": 0.707, "mscale_all_dim": 1.2}

EXAMPLES = (
    Example(
        model_type="deepseek_v2",
        fields=_EXAMPLE,
        variants={
            "lite": {},
            "wide-values-query-latent-yarn": {"v_head_dim": 28, "q_lora_rank": 14, "rope_parameters": _SCALED_ROPE},
            "groups-scaled": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
            "all-dense": {"first_k_dense_replace": 3, "num_attention_heads": 3, "num_key_value_heads": 3},
        },
    ),
    Example(
        model_type="deepseek_v3",
        fields={**_EXAMPLE, "n_group": 4, "topk_group": 2},
        variants={
            "groups": {},
            "query-latent-yarn": {"q_lora_rank": 14, "rope_parameters": {**YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 1.0}},
            "halves-turn-one-group": {"rope_interleave": False, "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A DeepSeek.

    Raises:
        CheckpointError: A field is missing or senseless.
        UnsupportedModel: A field asks for what this engine does not do.
    """
    for name in ("attention_bias", "mlp_bias"):
        fields.require(name, False)
    is_third = architecture == "DeepseekV3ForCausalLM"
    plain_dims, rotary_dims = fields.count("qk_nope_head_dim"), fields.count("qk_rope_head_dim")
    num_heads, num_layers = fields.count("num_attention_heads"), fields.count("num_hidden_layers")
    fields.require("num_key_value_heads", num_heads)
    rope = read_rope(fields, rotary_dims, interleaved=not is_third or fields.flag("rope_interleave", True))
    kinds, kind_of_layer = uniform(LayerKind(rope=rope), num_layers)
    query_rank = fields.optional_count("q_lora_rank")
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.count("vocab_size"),
        hidden_size=fields.count("hidden_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=plain_dims + rotary_dims,
        value_dim=fields.count("v_head_dim"),
        intermediate_size=fields.count("intermediate_size"),
        max_position_embeddings=context_limit(fields),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        activation=fields.activation(),
        attention_scale=_attention_scale(fields, plain_dims + rotary_dims, rope),
        # The latents' norms have an epsilon of their own, whatever rms_norm_eps says.
        latent=LatentAttention(query_rank=query_rank, rank=fields.count("kv_lora_rank"), plain_dims=plain_dims, norm_eps=1e-6),
        experts=read_experts(fields, num_layers, is_third=is_third),
    ).check(fields.place)
    return config, _names(num_layers, has_query_latent=query_rank is not None)


def _attention_scale(fields: ConfigFields, head_dim: int, rope: Rope) -> float:
    """Yarn's growth of queries and keys, as far as it is not in sines and cosines, counts for all dimensions."""
    scale: float = head_dim**-0.5
    section = fields.section("rope_parameters") or fields.section("rope_scaling")
    if rope.scaling is None or section is None or not section.get("mscale_all_dim"):
        return scale
    return scale * yarn_scale(rope.scaling.factor, section.number("mscale_all_dim")) ** 2


def read_experts(fields: ConfigFields, num_layers: int, *, is_third: bool) -> Experts | None:
    """DeepSeek's experts, of V3 as other families have them too; None if every layer is dense. Raises as `read` does."""
    first = fields.count("first_k_dense_replace", 3 if is_third else 0, at_least=0)
    if first >= num_layers or (fields.get("n_routed_experts") is None and not is_third):
        return None
    fields.require("moe_layer_freq", 1)
    fields.require("scoring_func", "sigmoid" if is_third else "softmax")
    if not is_third:
        # It would take the place of routed_scaling_factor; no published model asks for it.
        fields.require("norm_topk_prob", False)
    size = fields.count("moe_intermediate_size")
    return Experts(
        count=fields.count("n_routed_experts"),
        per_token=fields.count("num_experts_per_tok"),
        intermediate_size=size,
        scoring="sigmoid" if is_third else "softmax",
        normalise=is_third and fields.flag("norm_topk_prob", True),
        scale=fields.number("routed_scaling_factor", 2.5 if is_third else 1.0),
        correction=is_third,
        limit=_group_limit(fields, is_third=is_third),
        float32_router=True,
        shared_size=size * (fields.optional_count("n_shared_experts") or 0),
        layers=frozenset(range(first, num_layers)),
    )


def _group_limit(fields: ConfigFields, *, is_third: bool) -> GroupLimit | None:
    method = fields.get("topk_method") or ("noaux_tc" if is_third else "greedy")
    known = ("noaux_tc",) if is_third else ("greedy", "group_limited_greedy")
    if method not in known:
        raise UnsupportedModel(f"{fields.place}: topk_method {str(method)[:80]!r} is not supported; supported: {', '.join(known)}")
    if method == "greedy":
        return None
    return GroupLimit(fields.count("n_group", 8), fields.count("topk_group", 4), best=2 if is_third else 1)


def _names(num_layers: int, *, has_query_latent: bool) -> WeightNames:
    return WeightNames(
        latent_query="self_attn.q_b_proj" if has_query_latent else "self_attn.q_proj",
        latent_query_down="self_attn.q_a_proj",
        latent_query_norm="self_attn.q_a_layernorm",
        latent_down="self_attn.kv_a_proj_with_mqa",
        latent_norm="self_attn.kv_a_layernorm",
        latent_up="self_attn.kv_b_proj",
        router_correction="mlp.gate.e_score_correction_bias",
        shared_expert="mlp.shared_experts.",
        # Behind the last layer V3 has one that predicts a second token (MTP).
        unused=(f"model.layers.{num_layers}.",),
    )
