"""The variants of each family that transformers ships, as fields of its config; see `save_checkpoint` for what stands for the others."""

from __future__ import annotations

from typing import Any

_LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
_YARN_TUNED = {**_YARN, "attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}


def _longrope(original: int, pairs: int) -> dict[str, Any]:
    """Two sets of divisors, of which transformers takes the second for every sequence longer than `original`."""
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.1 * pair for pair in range(pairs)],
            "long_factor": [2.0 + pair for pair in range(pairs)],
            "original_max_position_embeddings": original,
        },
    }


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "gqa": {},
        "mha-tied": {"num_key_value_heads": 6, "tie_word_embeddings": True},
        "mqa-biases": {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
        "odd-sizes": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 10, "hidden_size": 39, "intermediate_size": 37},
        "wide-heads-llama3-rope": {"head_dim": 20, "rope_parameters": _LLAMA3},
        "narrow-heads-linear-rope": {"head_dim": 6, "rope_parameters": _LINEAR},
        "dynamic-rope": {"rope_parameters": _DYNAMIC},
        "yarn": {"head_dim": 16, "rope_parameters": _YARN},
        "yarn-tuned": {"head_dim": 16, "rope_parameters": _YARN_TUNED},
        "yi": {"num_key_value_heads": 3},
        "aquila": {"num_key_value_heads": 6},
        "aquila2": {"rope_parameters": _LINEAR},
    },
    "mistral": {
        "short-window": {"sliding_window": 11},
        "long-window-odd-heads": {"sliding_window": 150, "head_dim": 12},
        "no-window-tied": {"sliding_window": None, "tie_word_embeddings": True},
        "wide-heads-mqa": {"sliding_window": None, "num_key_value_heads": 1, "head_dim": 20},
    },
    "mixtral": {
        "gqa": {},
        "mha-window-one-expert": {"num_key_value_heads": 6, "sliding_window": 9, "num_experts_per_tok": 1},
        "wide-heads-tied": {"head_dim": 12, "num_local_experts": 3, "num_experts_per_tok": 3, "tie_word_embeddings": True},
    },
    "qwen2": {
        "tied": {"tie_word_embeddings": True, "head_dim": ...},
        "window": {"head_dim": ..., "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0},
        "window-above-full": {"head_dim": ..., "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
        "mqa-wide-heads-yarn": {"head_dim": 16, "num_key_value_heads": 1, "rope_parameters": _YARN},
    },
    "qwen2_moe": {
        "shared-expert": {},
        "sparse-every-second": {"decoder_sparse_step": 2, "norm_topk_prob": True},
        "dense-first-window": {"mlp_only_layers": [0], "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    },
    "qwen3": {
        "wide-heads": {"head_dim": 16},
        "mqa-biases-tied": {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True},
        "mixed-window": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2, "num_key_value_heads": 6},
    },
    "qwen3_moe": {
        "wide-heads": {"head_dim": 16, "norm_topk_prob": True},
        "dense-among-sparse": {"mlp_only_layers": [1], "attention_bias": True, "tie_word_embeddings": True},
        "mha-one-expert": {"num_key_value_heads": 6, "num_experts_per_tok": 1, "decoder_sparse_step": 2},
    },
    "gemma": {
        "wide-heads": {"head_dim": 16},
        "mqa-untied-biases": {"num_key_value_heads": 1, "tie_word_embeddings": False, "attention_bias": True},
    },
    "gemma2": {
        "mixed-window": {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 20},
        "low-caps-mha": {"num_key_value_heads": 6, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 150},
        "no-caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 9, "tie_word_embeddings": False},
    },
    "gemma3_text": {
        "mixed-window": {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 20, "sliding_window_pattern": 2},
        "mqa-linear-rope": {
            "num_key_value_heads": 1,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    },
    "glm": {
        "biases": {"attention_bias": True},
        "wide-heads-mqa": {"attention_bias": False, "head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True},
    },
    "glm4": {
        "gqa": {"attention_bias": False},
        "wide-heads-biases": {"attention_bias": True, "head_dim": 16, "num_key_value_heads": 6},
    },
    "phi": {
        "gqa": {"partial_rotary_factor": 0.5},
        "mha-fully-turning": {"num_key_value_heads": 6, "partial_rotary_factor": 1.0, "hidden_act": "relu"},
    },
    "phi3": {
        "window": {"sliding_window": 11},
        "mha-partly-turning": {"num_key_value_heads": 6, "partial_rotary_factor": 0.5, "tie_word_embeddings": True},
        # transformers changes sets between calls, this engine never: the long one where every sequence is longer, the short one where none can be.
        "longrope": _longrope(12, 4),
        "longrope-not-longer-partly-turning": {"partial_rotary_factor": 0.75, **_longrope(512, 3)},
    },
    "falcon": {
        "mqa-parallel": {},
        "groups-two-norms": {"num_kv_heads": 2, "new_decoder_architecture": True},
        "groups-one-norm-untied": {
            "num_kv_heads": 3,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
            "ffn_hidden_size": 70,
        },
        "mha-serial-biases": {"multi_query": False, "parallel_attn": False, "bias": True},
        "old-names": {},
    },
    "bloom": {
        "six-heads": {},
        "four-heads-untied": {"n_head": 4, "tie_word_embeddings": False},
    },
    "mpt": {
        "six-heads": {},
        "clipped": {"n_heads": 4, "attn_config": {"clip_qkv": 1.0, "softmax_scale": 0.2}},
        "old-name": {"n_heads": 3},
    },
    "opt": {
        "norms-before": {},
        "norms-behind-narrow": {"word_embed_proj_dim": 20, "do_layer_norm_before": False},
        "no-biases-untied": {"enable_bias": False, "tie_word_embeddings": False, "activation_function": "gelu"},
    },
    "gpt2": {
        "tied": {},
        "untied-relu": {"tie_word_embeddings": False, "n_inner": 70, "activation_function": "relu"},
    },
    "gpt_bigcode": {
        "mqa": {},
        "mha-untied": {"multi_query": False, "tie_word_embeddings": False, "n_inner": 70},
    },
    "gptj": {
        "partly-turning": {},
        "fully-turning": {"rotary_dim": 12, "n_head": 4, "n_inner": 70},
    },
    "gpt_neox": {
        "parallel": {"rotary_pct": 0.5},
        "serial-tied": {"use_parallel_residual": False, "tie_word_embeddings": True},
        "no-attention-biases-linear-rope": {"attention_bias": False, "rope_parameters": {**_LINEAR, "partial_rotary_factor": 1.0}},
    },
}

# What config.json says in checkpoints that have a form transformers ships under a name it does not know.
RENAMED: dict[str, dict[str, Any]] = {
    "llama/yi": {"architectures": ["YiForCausalLM"]},
    "llama/aquila": {"architectures": ["AquilaForCausalLM"]},
    "llama/aquila2": {"architectures": ["AquilaModel"]},
    "falcon/old-names": {
        "architectures": ["RWForCausalLM"],
        "num_attention_heads": ...,
        "n_head": 6,
        "num_hidden_layers": ...,
        "n_layer": 3,
    },
    "mpt/old-name": {"architectures": ["MPTForCausalLM"]},
}
