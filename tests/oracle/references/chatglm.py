"""ChatGLM2, ChatGLM3 and the first release of GLM-4, which share an architecture.

Where the facts are from (what says nothing else: modeling_chatglm.py of THUDM/chatglm3-6b):
  fields                config.json of THUDM/chatglm2-6b; rope_ratio as in glm-4-9b-chat-1m
  tensors               the module tree; transformer.rotary_pos_emb.inv_freq is a buffer among them that nothing needs
  query_key_value       rows of all queries, then of the key groups, then of the value groups; without multi_query_attention, head by head
                        the rows of its query, its key and its value; add_qkv_bias or add_bias_linear gives it a bias
  rotary positions      the first half of each head turns, in neighbouring pairs; frequencies over kv_channels / 2 dimensions, base
                        10000 * rope_ratio
  dense_h_to_4h         gate rows, then up rows (SwiGLU, arXiv 2002.05202); add_bias_linear gives it, dense_4h_to_h and dense a bias
  score scaling         apply_query_key_layer_scaling divides scores by the layer's number and multiplies them back: no effect here
  rope_ratio            chatglm2-6b-32k divides positions by it (position interpolation, says its README), all later releases multiply the base by it
                        (modeling_chatglm.py of THUDM/glm-4-9b): under the same field, and it matters at every position

Assumed: the name that a config has under _name_or_path or in auto_map tells chatglm2-6b-32k from chatglm3-6b-32k.
"""

from __future__ import annotations

from collections.abc import Sequence

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

_HIDDEN, _FFN, _LAYERS, _EPS = 48, 80, 3, 1e-5


class ChatGlm(WrittenModel):
    """A small random ChatGLM.

    Args:
        architecture: "ChatGLMModel" or "ChatGLMForConditionalGeneration": two names of one model.
        seed: Of the parameters.
        heads: Query heads.
        groups: Key and value heads; 0 = the config has no multi_query_attention, which no release is without.
        head_dim: Of each; a multiple of 4.
        qkv_bias: As all releases have it.
        linear_bias: As none has it.
        rope_ratio: None = the config does not have the field.
        divides: The ratio divides positions, as the model's name then tells; otherwise it multiplies the base.
        vocabulary: As large as published where the name counts.
    """

    def __init__(
        self,
        architecture: str,
        *,
        seed: int = 0,
        heads: int = 6,
        groups: int = 2,
        head_dim: int = 12,
        qkv_bias: bool = True,
        linear_bias: bool = False,
        rope_ratio: float | None = None,
        divides: bool | None = None,
        vocabulary: int = 97,
    ) -> None:
        self._heads, self._groups, self._head_dim = heads, groups or heads, head_dim
        self._head_by_head = not groups
        ratio = rope_ratio or 1.0
        self._rope_base = 10000 if divides else 10000 * ratio
        self._stretch = ratio if divides else 1.0
        config = {
            "architectures": [architecture],
            "model_type": "chatglm",
            "add_bias_linear": linear_bias,
            "add_qkv_bias": qkv_bias,
            "apply_query_key_layer_scaling": True,
            "apply_residual_connection_post_layernorm": False,
            "attention_dropout": 0.0,
            "attention_softmax_in_fp32": True,
            "bias_dropout_fusion": True,
            "eos_token_id": 2,
            "ffn_hidden_size": _FFN,
            "fp32_residual_connection": False,
            "hidden_dropout": 0.0,
            "hidden_size": _HIDDEN,
            "kv_channels": head_dim,
            "layernorm_epsilon": _EPS,
            "multi_query_attention": groups > 0,
            "multi_query_group_num": groups or 1,
            "num_attention_heads": heads,
            "num_layers": _LAYERS,
            "original_rope": True,
            "padded_vocab_size": vocabulary,
            "post_layer_norm": True,
            "rmsnorm": True,
            "seq_length": 512,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_cache": True,
        }
        if rope_ratio is not None:
            config["rope_ratio"] = rope_ratio
        if divides is not None:
            name = "THUDM/chatglm2-6b-32k" if divides else "THUDM/chatglm3-6b-32k"
            config |= {"_name_or_path": name, "auto_map": {"AutoModel": f"{name}--modeling_chatglm.ChatGLMForConditionalGeneration"}}
        shapes: dict[str, tuple[int, ...]] = {"transformer.embedding.word_embeddings.weight": (vocabulary, _HIDDEN)}
        for layer in range(_LAYERS):
            at = f"transformer.encoder.layers.{layer}."
            shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (_HIDDEN,)
            rows = (heads + 2 * self._groups) * head_dim
            shapes |= linear_shapes(f"{at}self_attention.query_key_value", rows, _HIDDEN, bias=qkv_bias or linear_bias)
            shapes |= linear_shapes(f"{at}self_attention.dense", _HIDDEN, heads * head_dim, bias=linear_bias)
            shapes |= linear_shapes(f"{at}mlp.dense_h_to_4h", 2 * _FFN, _HIDDEN, bias=linear_bias)
            shapes |= linear_shapes(f"{at}mlp.dense_4h_to_h", _HIDDEN, _FFN, bias=linear_bias)
        shapes["transformer.encoder.final_layernorm.weight"] = (_HIDDEN,)
        shapes["transformer.output_layer.weight"] = (vocabulary, _HIDDEN)
        buffers = {"transformer.rotary_pos_emb.inv_freq": inverse_frequencies(head_dim // 2, 10000)}
        super().__init__(config, shapes, seed=seed, buffers=buffers)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[tokens, vocabulary]."""
        hidden = self.embed("transformer.embedding.word_embeddings", tokens)
        for layer in range(_LAYERS):
            at = f"transformer.encoder.layers.{layer}."
            hidden = hidden + self._attention(f"{at}self_attention.", self.rms_norm(f"{at}input_layernorm", hidden, _EPS))
            hidden = hidden + self._mlp(f"{at}mlp.", self.rms_norm(f"{at}post_attention_layernorm", hidden, _EPS))
        return self.linear("transformer.output_layer", self.rms_norm("transformer.encoder.final_layernorm", hidden, _EPS))

    def _attention(self, at: str, x: torch.Tensor) -> torch.Tensor:
        fused = heads_of(self.linear(f"{at}query_key_value", x), self._head_dim)  # [T, all heads, D]
        if self._head_by_head:
            q, k, v = fused[:, 0::3], fused[:, 1::3], fused[:, 2::3]
        else:
            q, k, v = fused[:, : self._heads], fused[:, self._heads : -self._groups], fused[:, -self._groups :]
        q, k = (rotate(part, self._head_dim // 2, self._rope_base, neighbours=True, stretch=self._stretch) for part in (q, k))
        return self.linear(f"{at}dense", causal_attention(q, k, v))

    def _mlp(self, at: str, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.linear(f"{at}dense_h_to_4h", x).chunk(2, dim=1)
        return self.linear(f"{at}dense_4h_to_h", F.silu(gate) * up)


CASES = (
    ReferenceCase("chatglm-two-groups", "ChatGLMModel", ChatGlm),
    ReferenceCase("chatglm-one-group-wide-heads", "ChatGLMForConditionalGeneration", ChatGlm, {"groups": 1, "head_dim": 20}),
    ReferenceCase("chatglm-group-per-head-rope-ratio", "ChatGLMModel", ChatGlm, {"groups": 6, "head_dim": 8, "rope_ratio": 50}),
    ReferenceCase("chatglm-2-32k", "ChatGLMModel", ChatGlm, {"rope_ratio": 8, "divides": True, "vocabulary": 65024}),
    ReferenceCase("chatglm-3-32k", "ChatGLMModel", ChatGlm, {"rope_ratio": 50, "divides": False, "vocabulary": 65024}),
    ReferenceCase("chatglm-head-by-head", "ChatGLMModel", ChatGlm, {"groups": 0}),
    ReferenceCase("chatglm-no-biases", "ChatGLMModel", ChatGlm, {"qkv_bias": False}),
    ReferenceCase("chatglm-all-biases", "ChatGLMModel", ChatGlm, {"linear_bias": True}),
)
