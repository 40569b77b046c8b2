"""InternLM2 and InternLM2.5.

Where the facts are from (what says nothing else: modeling_internlm2.py of internlm/internlm2-7b):
  fields                config.json of internlm2_5-7b-chat
  tensors               the module tree; convert2llama.py of the InternLM repository for wqkv
  wqkv                  per group of key heads: the rows of its query heads, then of its key, then of its value (InternLM2's report, arXiv
                        2403.17297, section 2.2); a bias on it and on wo if `bias`
  feed forward          w2(silu(w1 x) * w3 x), no biases
  rotary positions      over the whole head in halves, base rope_theta; rope_scaling of type "linear" divides positions by its factor

Assumed: rope_scaling of type "dynamic" raises the base only past the trained length; references stay below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from tests.oracle.references.written_model import ReferenceCase, Streaming, WrittenModel, linear_shapes, rotate, turning_attention

_VOCABULARY, _HIDDEN, _FFN, _LAYERS, _EPS, _ROPE_BASE = 97, 48, 80, 3, 1e-5, 1000000.0


class InternLm2(WrittenModel):
    """A small random InternLM2.

    Args:
        architecture: "InternLM2ForCausalLM".
        seed: Of the parameters.
        heads: Query heads, a divisor of the hidden size, 48.
        groups: Key and value heads.
        bias: On attention's projections; no release has them.
        rope_scaling: The field of that name, of type "dynamic" or "linear"; None = null.
        streaming: How it is served, which no config says; None = as published.
    """

    def __init__(
        self,
        architecture: str,
        *,
        seed: int = 0,
        heads: int = 6,
        groups: int = 2,
        bias: bool = False,
        rope_scaling: dict[str, Any] | None = None,
        streaming: Streaming | None = None,
    ) -> None:
        self._streaming = streaming
        self._heads, self._groups, self._head_dim = heads, groups, _HIDDEN // heads
        self._stretch = rope_scaling["factor"] if rope_scaling is not None and rope_scaling["type"] == "linear" else 1.0
        config = {
            "architectures": [architecture],
            "model_type": "internlm2",
            "attn_implementation": "eager",
            "bias": bias,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": _HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": _FFN,
            "max_position_embeddings": 512,
            "num_attention_heads": heads,
            "num_hidden_layers": _LAYERS,
            "num_key_value_heads": groups,
            "pad_token_id": 2,
            "rms_norm_eps": _EPS,
            "rope_scaling": rope_scaling,
            "rope_theta": _ROPE_BASE,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": _VOCABULARY,
        }
        shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (_VOCABULARY, _HIDDEN)}
        for layer in range(_LAYERS):
            at = f"model.layers.{layer}."
            shapes[f"{at}attention_norm.weight"] = shapes[f"{at}ffn_norm.weight"] = (_HIDDEN,)
            shapes |= linear_shapes(f"{at}attention.wqkv", (heads + 2 * groups) * self._head_dim, _HIDDEN, bias=bias)
            shapes |= linear_shapes(f"{at}attention.wo", _HIDDEN, heads * self._head_dim, bias=bias)
            for name, outputs, inputs in (("w1", _FFN, _HIDDEN), ("w2", _HIDDEN, _FFN), ("w3", _FFN, _HIDDEN)):
                shapes |= linear_shapes(f"{at}feed_forward.{name}", outputs, inputs, bias=False)
        shapes |= {"model.norm.weight": (_HIDDEN,), "output.weight": (_VOCABULARY, _HIDDEN)}
        super().__init__(config, shapes, seed=seed)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens, vocabulary]."""
        hidden = self.embed("model.tok_embeddings", tokens)
        for layer in range(_LAYERS):
            at = f"model.layers.{layer}."
            hidden = hidden + self._attention(f"{at}attention.", self.rms_norm(f"{at}attention_norm", hidden, _EPS))
            hidden = hidden + self._feed_forward(f"{at}feed_forward.", self.rms_norm(f"{at}ffn_norm", hidden, _EPS))
        return self.linear("output", self.rms_norm("model.norm", hidden, _EPS))

    def _attention(self, at: str, x: torch.Tensor) -> torch.Tensor:
        grouped = self.linear(f"{at}wqkv", x).reshape(len(x), self._groups, -1, self._head_dim)  # [T, groups, queries + 2, D]
        q, k, v = grouped[:, :, :-2].flatten(1, 2), grouped[:, :, -2], grouped[:, :, -1]
        mixed = turning_attention(q, k, v, lambda part: rotate(part, self._head_dim, _ROPE_BASE, stretch=self._stretch), self._streaming)
        return self.linear(f"{at}wo", mixed)

    def _feed_forward(self, at: str, x: torch.Tensor) -> torch.Tensor:
        return self.linear(f"{at}w2", F.silu(self.linear(f"{at}w1", x)) * self.linear(f"{at}w3", x))


_DYNAMIC, _LINEAR = {"type": "dynamic", "factor": 2.0}, {"type": "linear", "factor": 4.0}

CASES = (
    ReferenceCase("internlm2-two-groups", "InternLM2ForCausalLM", InternLm2),
    ReferenceCase("internlm2-one-group-dynamic", "InternLM2ForCausalLM", InternLm2, {"groups": 1, "rope_scaling": _DYNAMIC}),
    ReferenceCase("internlm2-group-per-head-linear", "InternLM2ForCausalLM", InternLm2, {"groups": 6, "rope_scaling": _LINEAR}),
    ReferenceCase("internlm2-biases", "InternLM2ForCausalLM", InternLm2, {"groups": 3, "bias": True}),
    ReferenceCase("internlm2-streaming", "InternLM2ForCausalLM", InternLm2, streaming=Streaming(window=23, sinks=4)),
)
