"""MiniCPM 1 and 2, dense: Llama with scaled embeddings, residuals and logits.

Where the facts are from (what says nothing else: modeling_minicpm.py of openbmb/MiniCPM-2B-sft-bf16):
  fields                config.json of MiniCPM-2B-sft-bf16 and MiniCPM-1B-sft-bf16
  tensors               the module tree, that of Llama; lm_head is tied in all releases
  scale_emb             embeddings are multiplied by it
  scale_depth           what attention and MLP give is multiplied by it over the root of the number of layers
  dim_model_base        the last hidden state is divided by hidden_size over it before the logits' product
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tests.oracle.references.written_model import ReferenceCase, WrittenModel, causal_attention, heads_of, linear_shapes, rotate

_VOCABULARY, _HIDDEN, _FFN, _LAYERS, _EPS = 97, 48, 80, 3, 1e-5
_SCALE_EMB, _SCALE_DEPTH, _DIM_MODEL_BASE = 3, 1.4, 16


class MiniCpm(WrittenModel):
    """A small random MiniCPM.

    Args:
        architecture: "MiniCPMForCausalLM".
        seed: Of the parameters.
        heads: Query heads.
        groups: Key and value heads.
        base: Of the rotary frequencies; None = the config does not say it.
    """

    def __init__(self, architecture: str, *, seed: int = 0, heads: int = 6, groups: int = 6, base: float | None = None) -> None:
        self._head_dim = _HIDDEN // heads
        self._groups = groups
        self._base = base or 10000.0
        config = {
            "architectures": [architecture],
            "model_type": "minicpm",
            "bos_token_id": 1,
            "dim_model_base": _DIM_MODEL_BASE,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": _HIDDEN,
            "initializer_range": 0.1,
            "intermediate_size": _FFN,
            "max_position_embeddings": 512,
            "num_attention_heads": heads,
            "num_hidden_layers": _LAYERS,
            "num_key_value_heads": groups,
            "rms_norm_eps": _EPS,
            "rope_scaling": None,
            "scale_depth": _SCALE_DEPTH,
            "scale_emb": _SCALE_EMB,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": _VOCABULARY,
        }
        if base is not None:
            config["rope_theta"] = base
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (_VOCABULARY, _HIDDEN)}
        for layer in range(_LAYERS):
            at = f"model.layers.{layer}."
            shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (_HIDDEN,)
            for name, rows in (("q_proj", heads), ("k_proj", groups), ("v_proj", groups)):
                shapes |= linear_shapes(f"{at}self_attn.{name}", rows * self._head_dim, _HIDDEN, bias=False)
            shapes |= linear_shapes(f"{at}self_attn.o_proj", _HIDDEN, _HIDDEN, bias=False)
            for name in ("gate_proj", "up_proj"):
                shapes |= linear_shapes(f"{at}mlp.{name}", _FFN, _HIDDEN, bias=False)
            shapes |= linear_shapes(f"{at}mlp.down_proj", _HIDDEN, _FFN, bias=False)
        shapes["model.norm.weight"] = (_HIDDEN,)
        super().__init__(config, shapes, seed=seed)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens, vocabulary]."""
        hidden = self.embed("model.embed_tokens", tokens) * _SCALE_EMB
        depth = _SCALE_DEPTH / math.sqrt(_LAYERS)
        for layer in range(_LAYERS):
            at = f"model.layers.{layer}."
            hidden = hidden + depth * self._attention(f"{at}self_attn.", self.rms_norm(f"{at}input_layernorm", hidden, _EPS))
            hidden = hidden + depth * self._mlp(f"{at}mlp.", self.rms_norm(f"{at}post_attention_layernorm", hidden, _EPS))
        last = self.rms_norm("model.norm", hidden, _EPS) / (_HIDDEN / _DIM_MODEL_BASE)
        return self.linear("model.embed_tokens", last)

    def _attention(self, at: str, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads_of(self.linear(f"{at}{name}", x), self._head_dim) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = (rotate(part, self._head_dim, self._base) for part in (q, k))
        return self.linear(f"{at}o_proj", causal_attention(q, k, v))

    def _mlp(self, at: str, x: torch.Tensor) -> torch.Tensor:
        return self.linear(f"{at}down_proj", F.silu(self.linear(f"{at}gate_proj", x)) * self.linear(f"{at}up_proj", x))


CASES = (
    ReferenceCase("minicpm-mha", "MiniCPMForCausalLM", MiniCpm),
    ReferenceCase("minicpm-gqa-other-base", "MiniCPMForCausalLM", MiniCpm, {"heads": 4, "groups": 2, "base": 500.0}),
)
