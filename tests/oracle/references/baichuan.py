"""Baichuan 7B and 13B, first and second generation.

Where the facts are from (what says nothing else: modeling_baichuan.py of Baichuan-13B-Chat, Baichuan2-7B-Chat and Baichuan2-13B-Chat):
  fields                configuration_baichuan.py of Baichuan-13B-Base, the configs of models tuned from Baichuan2-7B and 13B: the 7B models
                        say max_position_embeddings, the 13B models say model_max_length alone, Baichuan2-7B says both
  architecture's name   "BaiChuanForCausalLM" for the first 7B, "BaichuanForCausalLM" for the three others
  tensors               the module tree; W_pack holds the rows of queries, of keys and of values, heads in order in each
  positions             7B: rotary over the whole head in halves, base 10000; 13B: distance slopes (ALiBi, arXiv 2108.12409), with the
                        paper's rule for head counts that are no power of two
  head                  second generation: rows of lm_head divided by their length when the model is loaded (NormHead; Baichuan 2's report,
                        arXiv 2309.10305); the stored rows are not normalised

The first 13B adds slope * (position of the key) to scores, the second subtracts slope * distance: the same after softmax.

Assumed: of the two 13B generations, which say the same in their configs, the vocabulary tells which it is: 64000 or 125696 as published, and what
was tuned from one of them may have a few tokens more. The first 7B's fields and its rotary_emb.inv_freq buffers are as in Llama of its time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

from tests.oracle.references.written_model import (
    ReferenceCase,
    WrittenModel,
    causal_attention,
    heads_of,
    inverse_frequencies,
    linear_shapes,
    rotate,
)

_HIDDEN, _FFN, _LAYERS, _EPS, _TRAINED_LENGTH = 48, 80, 3, 1e-6, 512


def distance_slopes(heads: int) -> torch.Tensor:
    """[heads]: a geometric series from 2^(-8 / n) down for a power of two n; other counts take every second one of the next finer series."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    finer = [2 ** (-8 * (head + 1) / (2 * power)) for head in range(2 * power)]
    return torch.tensor(slopes + finer[0::2][: heads - power])


class Baichuan(WrittenModel):
    """A small random Baichuan.

    Args:
        architecture: As that generation and size calls itself.
        seed: Of the parameters.
        generation: 1 or 2.
        size: Which of the two descriptions, not how large.
        heads: A divisor of the hidden size, 48.
        vocabulary: None = a small one in the first generation; in the second 125696, as published, for that is what tells it from the first.
    """

    def __init__(
        self,
        architecture: str,
        *,
        seed: int = 0,
        generation: Literal[1, 2],
        size: Literal["7B", "13B"],
        heads: int = 6,
        vocabulary: int | None = None,
    ) -> None:
        vocabulary = vocabulary or (97 if generation == 1 else 125696)
        self._heads = heads
        self._rotary = size == "7B"
        self._normalised_head = generation == 2
        config: dict[str, Any] = {
            "architectures": [architecture],
            "model_type": "baichuan",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": _HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": _FFN,
            "num_attention_heads": heads,
            "num_hidden_layers": _LAYERS,
            "pad_token_id": 0,
            "rms_norm_eps": _EPS,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": vocabulary,
        }
        if size == "7B":
            config["max_position_embeddings"] = _TRAINED_LENGTH
        if size == "13B" or generation == 2:
            config["model_max_length"] = _TRAINED_LENGTH
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, _HIDDEN)}
        buffers: dict[str, torch.Tensor] = {}
        for layer in range(_LAYERS):
            at = f"model.layers.{layer}."
            shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (_HIDDEN,)
            shapes |= linear_shapes(f"{at}self_attn.W_pack", 3 * _HIDDEN, _HIDDEN, bias=False)
            shapes |= linear_shapes(f"{at}self_attn.o_proj", _HIDDEN, _HIDDEN, bias=False)
            for name in ("gate_proj", "up_proj"):
                shapes |= linear_shapes(f"{at}mlp.{name}", _FFN, _HIDDEN, bias=False)
            shapes |= linear_shapes(f"{at}mlp.down_proj", _HIDDEN, _FFN, bias=False)
            if size == "7B" and generation == 1:
                buffers[f"{at}self_attn.rotary_emb.inv_freq"] = inverse_frequencies(_HIDDEN // heads, 10000)
        shapes |= {"model.norm.weight": (_HIDDEN,), "lm_head.weight": (vocabulary, _HIDDEN)}
        super().__init__(config, shapes, seed=seed, buffers=buffers)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens, vocabulary]."""
        hidden = self.embed("model.embed_tokens", tokens)
        for layer in range(_LAYERS):
            at = f"model.layers.{layer}."
            hidden = hidden + self._attention(f"{at}self_attn.", self.rms_norm(f"{at}input_layernorm", hidden, _EPS))
            hidden = hidden + self._mlp(f"{at}mlp.", self.rms_norm(f"{at}post_attention_layernorm", hidden, _EPS))
        head = self.tensors["lm_head.weight"]
        if self._normalised_head:
            head = head / head.norm(dim=1, keepdim=True)
        return self.rms_norm("model.norm", hidden, _EPS) @ head.T

    def _attention(self, at: str, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads_of(part, _HIDDEN // self._heads) for part in self.linear(f"{at}W_pack", x).chunk(3, dim=1))
        if self._rotary:
            q, k = (rotate(part, part.shape[-1], 10000) for part in (q, k))
        mixed = causal_attention(q, k, v, None if self._rotary else distance_slopes(self._heads))
        return self.linear(f"{at}o_proj", mixed)

    def _mlp(self, at: str, x: torch.Tensor) -> torch.Tensor:
        return self.linear(f"{at}down_proj", F.silu(self.linear(f"{at}gate_proj", x)) * self.linear(f"{at}up_proj", x))


CASES = (
    ReferenceCase("baichuan-7b", "BaiChuanForCausalLM", Baichuan, {"generation": 1, "size": "7B"}),
    ReferenceCase("baichuan-7b-longer-vocabulary", "BaiChuanForCausalLM", Baichuan, {"generation": 1, "size": "7B", "vocabulary": 64003}),
    ReferenceCase("baichuan-13b-odd-heads", "BaichuanForCausalLM", Baichuan, {"generation": 1, "size": "13B"}),
    ReferenceCase("baichuan-13b-power-of-two-heads", "BaichuanForCausalLM", Baichuan, {"generation": 1, "size": "13B", "heads": 8}),
    ReferenceCase(
        "baichuan-13b-longer-vocabulary", "BaichuanForCausalLM", Baichuan, {"generation": 1, "size": "13B", "heads": 4, "vocabulary": 64007}
    ),
    ReferenceCase("baichuan2-7b", "BaichuanForCausalLM", Baichuan, {"generation": 2, "size": "7B", "heads": 4}),
    ReferenceCase("baichuan2-13b-odd-heads", "BaichuanForCausalLM", Baichuan, {"generation": 2, "size": "13B", "heads": 3}),
    ReferenceCase(
        "baichuan2-13b-longer-vocabulary",
        "BaichuanForCausalLM",
        Baichuan,
        {"generation": 2, "size": "13B", "heads": 4, "vocabulary": 125699},
    ),
)
