"""Builds a model from an open checkpoint: reads tensors one by one and packs them as the kernels want them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F

from compute_svc.kernels.linear import LinearWeight, pack_linear
from compute_svc.layers.attention import Attention
from compute_svc.layers.decoder_layer import DecoderLayer, ParallelDecoderLayer, PostNormDecoderLayer
from compute_svc.layers.mlp import ExpertMlp, Mlp, group_experts
from compute_svc.layers.norm import Norm
from compute_svc.layers.rotary_table import RotaryTable, amplitude, frequencies
from compute_svc.models.causal_lm import CausalLM, Embedding, Head
from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.models.tensor_shapes import check_tensors, expected_shapes
from compute_svc.models.weight_names import WeightNames
from compute_svc.models.weights import Checkpoint, CheckpointError

Progress: TypeAlias = Callable[[int, int], None]
"""Told bytes done and bytes in all, after every tensor."""


class ModelBuilder:
    """Builds one model from one checkpoint.

    Args:
        config: What the model is.
        names: What its family calls its tensors.
        checkpoint: Where its tensors are.
        dtype: Of weights and activations.
        device: Where the model will live.
        on_progress: Told how far reading is.

    Raises:
        CheckpointError: The checkpoint's tensors are not this model's.
    """

    def __init__(
        self,
        config: ModelConfig,
        names: WeightNames,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        on_progress: Progress | None,
    ) -> None:
        names = names.fitting(checkpoint.tensors)
        check_tensors(checkpoint.tensors, config, names)
        self._config = config
        self._names = names
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._on_progress = on_progress
        self._bytes_done = 0
        self._bytes_total = sum(checkpoint.tensors[name].num_bytes for name in expected_shapes(config, names))

    def build(self) -> CausalLM:
        """Reads everything. Raises CheckpointError if a tensor cannot be used."""
        config, names = self._config, self._names
        embedding = self._embedding()
        layers = tuple(self._layer(index) for index in range(config.num_layers))
        head = Head(
            norm=self._norm(names.final_norm) if config.final_norm else None,
            narrow=None if config.embedding_size is None else pack_linear(self._read(f"{names.embedding_out}.weight")),
            projection=self._projection(embedding.tokens),
            scale=config.logit_scale,
            softcap=config.logit_softcap,
        )
        return CausalLM(config, embedding, layers, head, tuple(map(self._rotary, config.kinds)))

    def _embedding(self) -> Embedding:
        config, names = self._config, self._names
        return Embedding(
            tokens=self._read(f"{names.embedding}.weight"),
            positions=None if config.position_offset is None else self._read(f"{names.position_embedding}.weight"),
            position_offset=config.position_offset or 0,
            scale=config.embedding_scale,
            norm=self._norm(names.embedding_norm) if config.embedding_norm else None,
            widen=None if config.embedding_size is None else pack_linear(self._read(f"{names.embedding_in}.weight")),
        )

    def _projection(self, embedding: torch.Tensor) -> LinearWeight:
        name = f"{self._names.lm_head}.weight"
        if not self._config.tie_word_embeddings:
            weight, bias = self._weight_and_bias(self._names.lm_head, bias=self._config.lm_head_bias)
            return pack_linear(F.normalize(weight.float()).to(weight.dtype) if self._config.normalised_head else weight, bias)
        if name in self._checkpoint.tensors and not torch.equal(self._checkpoint.read(name, self._dtype, self._device), embedding):
            raise CheckpointError(f"config.json ties the embeddings, but {name} differs from {self._names.embedding}.weight")
        return pack_linear(embedding)

    def _rotary(self, kind: LayerKind) -> RotaryTable | None:
        rope = kind.rope
        if rope is None:
            return None
        rates = frequencies(rope.dims, rope.theta, rope.scaling).to(self._device)
        return RotaryTable(rates, amplitude(rope.scaling), self._config.max_position_embeddings)

    def _layer(self, index: int) -> DecoderLayer | ParallelDecoderLayer | PostNormDecoderLayer:
        config, names, prefix = self._config, self._names, self._names.layer.format(index)
        attention, mlp = self._attention(prefix, index), self._mlp_of_layer(prefix, index)
        if config.sum_norms:
            norms = [self._norm(prefix + name) for name in (names.attention_output_norm, names.mlp_output_norm)]
            return PostNormDecoderLayer(attention, norms[0], mlp, norms[1])
        attention_norm = self._norm(prefix + names.attention_norm)
        mlp_norm = self._norm(prefix + names.mlp_norm) if config.mlp_norm else None
        if config.residual == "parallel":
            return ParallelDecoderLayer(attention_norm, attention, mlp_norm, mlp)
        assert mlp_norm is not None, "a serial layer has a norm before its MLP"
        if not config.output_norms:
            return DecoderLayer(attention_norm, attention, None, mlp_norm, mlp, None)
        behind = [self._norm(prefix + name) for name in (names.attention_output_norm, names.mlp_output_norm)]
        return DecoderLayer(attention_norm, attention, behind[0], mlp_norm, mlp, behind[1])

    def _attention(self, prefix: str, index: int) -> Attention:
        config, names = self._config, self._names
        kind = config.kind_of_layer[index]
        rope = config.kinds[kind].rope
        order = self._qkv_order(interleaved_dims=rope.dims if rope is not None and rope.interleaved else 0)
        parts = [self._weight_and_bias(prefix + name, bias=config.qkv_bias, transposed=names.transposed) for name in names.qkv]
        weight = torch.cat([weight for weight, _ in parts])[order]
        bias = torch.cat([bias for _, bias in parts if bias is not None])[order] if config.qkv_bias else None
        return Attention(
            qkv=pack_linear(weight, bias),
            output=self._linear(prefix + names.output, bias=config.output_bias, transposed=names.transposed),
            qk_norm=self._qk_norm(prefix) if config.qk_norm else None,
            qk_norm_eps=config.norm_eps,
            qkv_limit=config.qkv_limit,
            rotary_dims=0 if rope is None else rope.dims,
            kind=kind,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
        )

    def _qkv_order(self, *, interleaved_dims: int) -> torch.Tensor:
        """[outputs] int64: which output of the stored projections goes where: queries, keys, values, each head whole.

        Scores do not change when the dimensions of queries and keys change places alike; so neighbours that turn together are laid half the
        turning dimensions apart, where the rotary kernel expects them.
        """
        config = self._config
        heads = torch.arange(config.num_heads + 2 * config.num_kv_heads)
        if len(self._names.qkv) == 1 and self._names.qkv_layout == "groups":
            grouped = heads.view(config.num_kv_heads, -1)
            heads = torch.cat((grouped[:, :-2].flatten(), grouped[:, -2], grouped[:, -1]))
        order = heads[:, None] * config.head_dim + torch.arange(config.head_dim)
        if interleaved_dims:
            turned = order[: config.num_heads + config.num_kv_heads, :interleaved_dims]
            turned.copy_(torch.cat((turned[:, 0::2], turned[:, 1::2]), dim=1))
        return order.flatten().to(self._device)

    def _qk_norm(self, prefix: str) -> torch.Tensor:
        queries = self._norm_weight(prefix + self._names.q_norm).expand(self._config.num_heads, -1)
        keys = self._norm_weight(prefix + self._names.k_norm).expand(self._config.num_kv_heads, -1)
        return torch.cat((queries, keys))

    def _mlp_of_layer(self, prefix: str, index: int) -> Mlp | ExpertMlp:
        names, experts = self._names, self._config.experts
        if experts is None or index not in experts.layers:
            return self._mlp(prefix, names.mlp_in, names.mlp_down, transposed=names.transposed)
        mlps = [self._mlp(prefix + names.expert.format(number), names.expert_in, names.expert_down) for number in range(experts.count)]
        return ExpertMlp(
            router=self._linear(prefix + names.router, bias=False),
            experts=group_experts(mlps),
            per_token=experts.per_token,
            normalise=experts.normalise,
            shared=self._mlp(prefix + names.shared_expert, names.expert_in, names.expert_down) if experts.shared_size else None,
            shared_gate=self._linear(prefix + names.shared_gate, bias=False) if experts.shared_gate else None,
        )

    def _mlp(self, prefix: str, into: tuple[str, ...], down: str, *, transposed: bool = False) -> Mlp:
        config = self._config
        parts = [self._weight_and_bias(prefix + name, bias=config.mlp_bias, transposed=transposed) for name in into]
        if config.gated and len(parts) == 1:
            ((weight, bias),) = parts
            halves = weight.chunk(2)
            biases = (None, None) if bias is None else bias.chunk(2)
            parts = list(zip(halves, biases, strict=True))
        gate = pack_linear(*parts[0]) if config.gated else None
        return Mlp(
            gate, pack_linear(*parts[-1]), self._linear(prefix + down, bias=config.mlp_bias, transposed=transposed), config.activation
        )

    def _norm(self, name: str) -> Norm:
        config = self._config
        bias = self._read(f"{name}.bias") if config.norm_bias else None
        return Norm(config.norm, self._norm_weight(name), bias, config.norm_eps)

    def _norm_weight(self, name: str) -> torch.Tensor:
        """Float32 if it is stored as a difference: bfloat16 has no digits for it behind the one."""
        if not self._config.norm_offset:
            return self._read(f"{name}.weight")
        return self._read(f"{name}.weight", torch.float32) + self._config.norm_offset

    def _linear(self, name: str, *, bias: bool, transposed: bool = False) -> LinearWeight:
        return pack_linear(*self._weight_and_bias(name, bias=bias, transposed=transposed))

    def _weight_and_bias(self, name: str, *, bias: bool, transposed: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[outputs, inputs] and [outputs]."""
        weight = self._read(f"{name}.weight")
        return weight.t().contiguous() if transposed else weight, self._read(f"{name}.bias") if bias else None

    def _read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = self._checkpoint.read(name, dtype or self._dtype, self._device)
        self._bytes_done += self._checkpoint.tensors[name].num_bytes
        if self._on_progress is not None:
            self._on_progress(self._bytes_done, self._bytes_total)
        return tensor
