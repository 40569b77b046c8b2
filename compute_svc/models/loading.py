"""Builds a model from an open checkpoint: reads tensors one by one and packs them as the kernels want them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from compute_svc.kernels.linear import LinearWeight, pack_linear
from compute_svc.layers.attention import Attention
from compute_svc.layers.decoder_layer import DecoderLayer
from compute_svc.layers.gated_mlp import GatedMlp
from compute_svc.layers.rotary_table import RotaryTable, frequencies
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.config import ModelConfig
from compute_svc.models.tensor_names import EMBEDDING, FINAL_NORM, LM_HEAD, check_tensors, expected_shapes, layer_prefix
from compute_svc.weights import Checkpoint, CheckpointError

Progress: TypeAlias = Callable[[int, int], None]
"""Told bytes done and bytes in all, after every tensor."""


class ModelBuilder:
    """Builds one model from one checkpoint.

    Args:
        config: What the model is.
        checkpoint: Where its tensors are.
        dtype: Of weights and activations.
        device: Where the model will live.
        on_progress: Told how far reading is.

    Raises:
        CheckpointError: The checkpoint's tensors are not this model's.
    """

    def __init__(
        self, config: ModelConfig, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device, on_progress: Progress | None
    ) -> None:
        check_tensors(checkpoint.tensors, config)
        self._config = config
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._on_progress = on_progress
        self._bytes_done = 0
        self._bytes_total = sum(checkpoint.tensors[name].num_bytes for name in expected_shapes(config))

    def build(self) -> CausalLM:
        """Reads everything. Raises CheckpointError if a tensor cannot be used."""
        config = self._config
        embedding = self._read(EMBEDDING)
        layers = tuple(self._layer(index) for index in range(config.num_layers))
        final_norm = self._read(FINAL_NORM)
        lm_head = pack_linear(self._tied(embedding) if config.tie_word_embeddings else self._read(LM_HEAD))
        rates = frequencies(config.head_dim, config.rope_theta, config.rope_scaling).to(self._device)
        return CausalLM(config, embedding, layers, final_norm, lm_head, RotaryTable(rates))

    def _layer(self, index: int) -> DecoderLayer:
        config, prefix = self._config, layer_prefix(index)
        attention = Attention(
            qkv=self._linear(*(f"{prefix}self_attn.{name}_proj" for name in "qkv"), bias=config.qkv_bias),
            output=self._linear(f"{prefix}self_attn.o_proj", bias=config.output_bias),
            qk_norm=self._qk_norm(prefix) if config.qk_norm else None,
            qk_norm_eps=config.rms_norm_eps,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
        )
        mlp = GatedMlp(*(self._linear(f"{prefix}mlp.{name}_proj", bias=config.mlp_bias) for name in ("gate", "up", "down")))
        return DecoderLayer(
            attention_norm=self._read(f"{prefix}input_layernorm.weight"),
            attention=attention,
            mlp_norm=self._read(f"{prefix}post_attention_layernorm.weight"),
            mlp=mlp,
            eps=config.rms_norm_eps,
        )

    def _linear(self, *names: str, bias: bool) -> LinearWeight:
        """The maps of these names as one, outputs side by side."""
        weight = torch.cat([self._read(f"{name}.weight") for name in names])
        return pack_linear(weight, torch.cat([self._read(f"{name}.bias") for name in names]) if bias else None)

    def _qk_norm(self, prefix: str) -> torch.Tensor:
        queries = self._read(f"{prefix}self_attn.q_norm.weight").expand(self._config.num_heads, -1)
        keys = self._read(f"{prefix}self_attn.k_norm.weight").expand(self._config.num_kv_heads, -1)
        return torch.cat((queries, keys))

    def _tied(self, embedding: torch.Tensor) -> torch.Tensor:
        if LM_HEAD in self._checkpoint.tensors and not torch.equal(self._checkpoint.read(LM_HEAD, self._dtype, self._device), embedding):
            raise CheckpointError(f"config.json ties the embeddings, but {LM_HEAD} differs from {EMBEDDING}")
        return embedding

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.read(name, self._dtype, self._device)
        self._bytes_done += self._checkpoint.tensors[name].num_bytes
        if self._on_progress is not None:
            self._on_progress(self._bytes_done, self._bytes_total)
        return tensor
