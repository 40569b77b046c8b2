"""InternLM, first generation: Llama's layout with biases on all four projections of attention.

Where the facts are from (what says nothing else: modeling_internlm.py of internlm/internlm-20b and of its later revision):
  fields                config.json of internlm-20b; `rotary` from the later revision of the model's code, `bias` true as in internlm-7b
  tensors               pytorch_model.bin.index.json of internlm-20b; heads in order
  bias                  q_proj, k_proj, v_proj and o_proj have one if `bias`; the MLP never has
  rotary positions      over the whole head in halves; base from `rotary` where the config has it, else 10000

Assumed: `rotary` of type "dynamic" raises the base only past the trained length; references stay below it. num_key_value_heads equals
num_attention_heads in every release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from tests.oracle.references.written_model import ReferenceCase, WrittenModel, causal_attention, heads_of, linear_shapes, rotate

_VOCABULARY, _HIDDEN, _FFN, _LAYERS, _EPS = 97, 48, 80, 3, 1e-6


class InternLm(WrittenModel):
    """A small random InternLM of the first generation.

    Args:
        architecture: "InternLMForCausalLM".
        seed: Of the parameters.
        heads: A divisor of the hidden size, 48.
        bias: On attention's projections: the 7B model has them, the 20B model has not.
        rotary: The field of that name of the 7B models' configs; None = as the 20B model's config.
    """

    def __init__(
        self, architecture: str, *, seed: int = 0, heads: int = 6, bias: bool = True, rotary: dict[str, Any] | None = None
    ) -> None:
        self._heads = heads
        self._rope_base = 10000.0 if rotary is None else float(rotary["base"])
        config: dict[str, Any] = {
            "architectures": [architecture],
            "model_type": "internlm",
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
            "pad_token_id": 0,
            "rms_norm_eps": _EPS,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_cache": True,
            "vocab_size": _VOCABULARY,
        }
        if rotary is None:
            config |= {"num_key_value_heads": heads, "pretraining_tp": 1, "rope_scaling": None, "rope_theta": self._rope_base}
        else:
            config["rotary"] = rotary
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (_VOCABULARY, _HIDDEN)}
        for layer in range(_LAYERS):
            at = f"model.layers.{layer}."
            shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (_HIDDEN,)
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                shapes |= linear_shapes(f"{at}self_attn.{name}", _HIDDEN, _HIDDEN, bias=bias)
            for name in ("gate_proj", "up_proj"):
                shapes |= linear_shapes(f"{at}mlp.{name}", _FFN, _HIDDEN, bias=False)
            shapes |= linear_shapes(f"{at}mlp.down_proj", _HIDDEN, _FFN, bias=False)
        shapes |= {"model.norm.weight": (_HIDDEN,), "lm_head.weight": (_VOCABULARY, _HIDDEN)}
        super().__init__(config, shapes, seed=seed)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens, vocabulary]."""
        hidden = self.embed("model.embed_tokens", tokens)
        for layer in range(_LAYERS):
            at = f"model.layers.{layer}."
            hidden = hidden + self._attention(f"{at}self_attn.", self.rms_norm(f"{at}input_layernorm", hidden, _EPS))
            hidden = hidden + self._mlp(f"{at}mlp.", self.rms_norm(f"{at}post_attention_layernorm", hidden, _EPS))
        return self.linear("lm_head", self.rms_norm("model.norm", hidden, _EPS))

    def _attention(self, at: str, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads_of(self.linear(f"{at}{name}", x), _HIDDEN // self._heads) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = (rotate(part, part.shape[-1], self._rope_base) for part in (q, k))
        return self.linear(f"{at}o_proj", causal_attention(q, k, v))

    def _mlp(self, at: str, x: torch.Tensor) -> torch.Tensor:
        return self.linear(f"{at}down_proj", F.silu(self.linear(f"{at}gate_proj", x)) * self.linear(f"{at}up_proj", x))


_ROTARY = {"base": 500, "type": "dynamic"}

CASES = (
    ReferenceCase("internlm-biases", "InternLMForCausalLM", InternLm),
    ReferenceCase("internlm-no-biases", "InternLMForCausalLM", InternLm, {"bias": False, "heads": 4}),
    ReferenceCase("internlm-rotary-field", "InternLMForCausalLM", InternLm, {"rotary": _ROTARY}),
)
