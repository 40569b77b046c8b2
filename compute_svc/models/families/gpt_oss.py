"""gpt-oss: every second layer has a window, every head a learnt sink, all MLPs are experts with clamped gates; biases everywhere.

Weights in MXFP4, as first published, are refused; the same in bfloat16 are read.
"""

from __future__ import annotations

from compute_svc.models.config import Clamp, Experts, LayerKind, ModelConfig
from compute_svc.models.config_fields import ConfigFields, read_rope, windowed
from compute_svc.models.example import GROUPED_SIZES, LINEAR_ROPE, YARN_ROPE, Example
from compute_svc.models.families.llama import llama_like
from compute_svc.models.weight_names import WeightNames

ARCHITECTURES = ("GptOssForCausalLM",)

EXAMPLES = (
    Example(
        model_type="gpt_oss",
        # 5.17 computes other logits wherever not all experts are chosen.
        right_since="5.23",
        fields={
            **GROUPED_SIZES,
            "intermediate_size": 24,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 9,
            "swiglu_limit": 2.0,
            "pad_token_id": 0,
            "rope_parameters": {**YARN_ROPE, "truncate": False},
        },
        variants={
            "mixed-window-yarn": {"head_dim": 12},
            "mqa-odd-heads-all-full": {"num_key_value_heads": 1, "head_dim": 10, "layer_types": ["full_attention"] * 3},
            "mha-tight-clamp": {
                "num_key_value_heads": 6,
                "swiglu_limit": 0.5,
                "swiglu_alpha": 1.1,
                "sliding_window": 150,
                "tie_word_embeddings": True,
                "rope_parameters": LINEAR_ROPE,
            },
            "no-attention-biases-clamp-as-published": {"attention_bias": False, "num_experts_per_tok": 5, "swiglu_limit": 7.0},
        },
    ),
)


def read(fields: ConfigFields, architecture: str) -> tuple[ModelConfig, WeightNames]:
    """A gpt-oss. Raises as `llama_like` and `windowed` do."""
    num_layers = fields.count("num_hidden_layers")
    rope = read_rope(fields, fields.count("head_dim", 64), theta=150000.0)
    sliding = LayerKind(rope=rope, window=fields.count("sliding_window", 128))
    alternating = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(num_layers)]
    kinds, kind_of_layer = windowed(fields, LayerKind(rope=rope), sliding, default=alternating)
    bias = fields.flag("attention_bias", True)
    config = llama_like(
        fields,
        architecture,
        head_dim=64,
        kinds=kinds,
        kind_of_layer=kind_of_layer,
        norm_eps=fields.number("rms_norm_eps", 1e-5),
        qkv_bias=bias,
        output_bias=bias,
        sink_logits=True,
        experts=Experts(
            count=fields.count("num_local_experts"),
            per_token=fields.count("num_experts_per_tok" if "num_experts_per_tok" in fields else "experts_per_token"),
            intermediate_size=fields.count("intermediate_size"),
            normalise=False,
            scoring="softmax_of_chosen",
            clamp=Clamp(alpha=fields.number("swiglu_alpha", 1.702), limit=fields.number("swiglu_limit", 7.0)),
            layers=frozenset(range(num_layers)),
        ),
    )
    return config, WeightNames(
        sink_logits="self_attn.sinks",
        router="mlp.router",
        expert_stacks=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    )
