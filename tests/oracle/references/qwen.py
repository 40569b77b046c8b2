"""Qwen, first generation (1.8B, 7B, 14B, 72B).

Where the facts are from (what says nothing else: modeling_qwen.py of Qwen/Qwen-1_8B):
  fields                config.json of Qwen-7B and Qwen-72B (rotary_emb_base)
  tensors               pytorch_model.bin.index.json of Qwen-7B
  c_attn                rows of queries, of keys and of values, heads in order in each; always with a bias (Qwen's report, arXiv 2309.16609,
                        section 2.3); no_bias takes the others' away
  intermediate_size     twice the width of the MLP: w1 and w2 have half of it each
  MLP                   c_proj(w1 x * silu(w2 x)): the gate is w2
  rotary positions      over the first rotary_pct of kv_channels in halves, base rotary_emb_base

Assumed: seq_length is the trained length. use_logn_attn scales queries, and use_dynamic_ntk raises the base, only past it; references stay
below it. kv_channels is hidden_size / num_attention_heads in every release, and the published code works for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tests.oracle.references.written_model import ReferenceCase, Streaming, WrittenModel, heads_of, linear_shapes, rotate, turning_attention

_VOCABULARY, _HIDDEN, _FFN, _LAYERS, _EPS = 97, 48, 80, 3, 1e-6


class Qwen(WrittenModel):
    """A small random Qwen of the first generation.

    Args:
        architecture: "QWenLMHeadModel".
        seed: Of the parameters.
        heads: A divisor of the hidden size, 48.
        no_bias: As all releases have it.
        rotary_pct: Share of a head that turns; 1 in all releases.
        rotary_emb_base: Of the frequencies; 10000, and 1000000 in the 72B model.
        stretched: Whether the config asks for what happens past the trained length; the 72B model's does not.
        streaming: How it is served, which no config says; None = as published.
    """

    def __init__(
        self,
        architecture: str,
        *,
        seed: int = 0,
        heads: int = 6,
        no_bias: bool = True,
        rotary_pct: float = 1.0,
        rotary_emb_base: int = 10000,
        stretched: bool = True,
        streaming: Streaming | None = None,
    ) -> None:
        self._streaming = streaming
        self._heads = heads
        self._turning = int(_HIDDEN // heads * rotary_pct)
        self._rope_base = float(rotary_emb_base)
        config = {
            "architectures": [architecture],
            "model_type": "qwen",
            "attn_dropout_prob": 0.0,
            "emb_dropout_prob": 0.0,
            "hidden_size": _HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": 2 * _FFN,
            "kv_channels": _HIDDEN // heads,
            "layer_norm_epsilon": _EPS,
            "max_position_embeddings": 1024,
            "no_bias": no_bias,
            "num_attention_heads": heads,
            "num_hidden_layers": _LAYERS,
            "onnx_safe": None,
            "rotary_emb_base": rotary_emb_base,
            "rotary_pct": rotary_pct,
            "scale_attn_weights": True,
            "seq_length": 256,
            "tie_word_embeddings": False,
            "tokenizer_class": "QWenTokenizer",
            "use_cache": True,
            "use_dynamic_ntk": stretched,
            "use_flash_attn": "auto",
            "use_logn_attn": stretched,
            "vocab_size": _VOCABULARY,
        }
        shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (_VOCABULARY, _HIDDEN)}
        for layer in range(_LAYERS):
            at = f"transformer.h.{layer}."
            shapes[f"{at}ln_1.weight"] = shapes[f"{at}ln_2.weight"] = (_HIDDEN,)
            shapes |= linear_shapes(f"{at}attn.c_attn", 3 * _HIDDEN, _HIDDEN, bias=True)
            shapes |= linear_shapes(f"{at}attn.c_proj", _HIDDEN, _HIDDEN, bias=not no_bias)
            for name in ("w1", "w2"):
                shapes |= linear_shapes(f"{at}mlp.{name}", _FFN, _HIDDEN, bias=not no_bias)
            shapes |= linear_shapes(f"{at}mlp.c_proj", _HIDDEN, _FFN, bias=not no_bias)
        shapes |= {"transformer.ln_f.weight": (_HIDDEN,), "lm_head.weight": (_VOCABULARY, _HIDDEN)}
        super().__init__(config, shapes, seed=seed)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens, vocabulary]."""
        hidden = self.embed("transformer.wte", tokens)
        for layer in range(_LAYERS):
            at = f"transformer.h.{layer}."
            hidden = hidden + self._attention(f"{at}attn.", self.rms_norm(f"{at}ln_1", hidden, _EPS))
            hidden = hidden + self._mlp(f"{at}mlp.", self.rms_norm(f"{at}ln_2", hidden, _EPS))
        return self.linear("lm_head", self.rms_norm("transformer.ln_f", hidden, _EPS))

    def _attention(self, at: str, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads_of(part, _HIDDEN // self._heads) for part in self.linear(f"{at}c_attn", x).chunk(3, dim=1))
        mixed = turning_attention(q, k, v, lambda part: rotate(part, self._turning, self._rope_base), self._streaming)
        return self.linear(f"{at}c_proj", mixed)

    def _mlp(self, at: str, x: torch.Tensor) -> torch.Tensor:
        return self.linear(f"{at}c_proj", self.linear(f"{at}w1", x) * F.silu(self.linear(f"{at}w2", x)))


CASES = (
    ReferenceCase("qwen", "QWenLMHeadModel", Qwen),
    ReferenceCase("qwen-other-base-unstretched", "QWenLMHeadModel", Qwen, {"heads": 4, "rotary_emb_base": 1000000, "stretched": False}),
    ReferenceCase("qwen-all-biases", "QWenLMHeadModel", Qwen, {"no_bias": False}),
    ReferenceCase("qwen-partial-rotary", "QWenLMHeadModel", Qwen, {"heads": 3, "rotary_pct": 0.5}),
    ReferenceCase(
        "qwen-partial-rotary-streaming", "QWenLMHeadModel", Qwen, {"heads": 3, "rotary_pct": 0.5}, Streaming(window=140, sinks=9)
    ),
)
