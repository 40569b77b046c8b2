"""Builds a model from an open checkpoint: reads tensors one by one and packs them as the kernels want them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F

from compute_svc.kernels.backend import is_batch_invariant, uses_triton
from compute_svc.kernels.cpu_features import multiplies_tiles
from compute_svc.kernels.linear import ActivationFormat, LinearWeight, pack_stored
from compute_svc.kernels.native import native_library
from compute_svc.layers.attention import Attention
from compute_svc.layers.decoder_layer import DecoderLayer, ParallelDecoderLayer, PostLnDecoderLayer
from compute_svc.layers.heads import HeadNorm, LatentHeads, ProjectedHeads
from compute_svc.layers.mlp import ClampedMlp, ExpertMlp, Mlp, group_experts
from compute_svc.layers.norm import Norm
from compute_svc.layers.rotary_table import RotaryTable, amplitude, frequencies
from compute_svc.layers.router import Router
from compute_svc.models.causal_lm import CausalLM, Embedding, Head
from compute_svc.models.config import Clamp, Experts, LatentAttention, LayerKind, ModelConfig, NormPlacement, Rope
from compute_svc.models.head_layout import latent_keys_and_values, latent_queries, padded_heads, qkv_order, turning_order
from compute_svc.models.staged_lm import StagedLM
from compute_svc.models.tensor_shapes import check_tensors, expected_shapes, zero_biases
from compute_svc.models.weight_names import WeightNames
from compute_svc.models.weights import Checkpoint, CheckpointError
from compute_svc.parallel.groups.rank_group import ALONE, RankGroup
from compute_svc.parallel.groups.stage_group import ONE_STAGE, StageGroup
from compute_svc.parallel.parts.shares import Share, vocabulary_width
from compute_svc.stored_weights.dense_weight import DenseWeight, pick
from compute_svc.stored_weights.stored_weight import StoredWeight, join

_log = logging.getLogger(__name__)

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
        activations: What integer weights are multiplied by.
        on_progress: Told how far reading is.
        ranks: Have the other parts of a larger model; model and checkpoint are this rank's part then.
        stages: Have the other layers, likewise.

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
        activations: ActivationFormat,
        on_progress: Progress | None,
        ranks: RankGroup = ALONE,
        stages: StageGroup = ONE_STAGE,
    ) -> None:
        names = names.fitting(checkpoint.tensors)
        if ranks is ALONE:
            # A part of a checkpoint comes from one that was looked at as a whole.
            check_tensors(checkpoint.tensors, config, names)
        self._config = config
        self._names = names
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._device = device
        self._activations: ActivationFormat = activations
        self._on_progress = on_progress
        self._ranks = ranks
        self._stages = stages
        # One sum does for both parts of a parallel layer, behind the second.
        self._ranks_of_part = ALONE if config.residual == "parallel" else ranks
        self._bytes_done = 0
        self._sizes: Counter[str] = Counter()
        self._has_ints = False
        expected = expected_shapes(config, names)
        self._bytes_total = sum(checkpoint.tensors[name].num_bytes for name in expected)
        for name in zero_biases(checkpoint.tensors, expected):
            if bool(checkpoint.read(name, torch.float32, torch.device("cpu")).any()):
                raise CheckpointError(f"tensor {name} is a bias, which {config.architecture} as config.json describes it does not have")

    def build(self, num_layers: int | None = None) -> CausalLM:
        """Reads everything, or the first so many layers and all that is not of a layer. Raises CheckpointError if a tensor cannot be used."""
        config = self._config
        embedding = self._embedding() if config.has_ends else None
        layers = tuple(self.layer(index) for index in range(config.num_layers if num_layers is None else num_layers))
        head = None if embedding is None else self._head(embedding.tokens)
        _log.info("matrices in memory: %s", ", ".join(f"{size // 1_000_000} MB {name}" for name, size in self._sizes.most_common()))
        rotary = tuple(map(self._rotary, config.kinds))
        kernels = kernel_names(self._device.type, self._dtype, has_ints=self._has_ints, num_ranks=self._ranks.size)
        # With its index, as tensors have it.
        device = torch.empty(0, device=self._device).device
        if self._stages is ONE_STAGE:
            return CausalLM(config, embedding, layers, head, rotary, self._dtype, device, kernels)
        return StagedLM(config, embedding, layers, head, rotary, self._dtype, device, kernels, stages=self._stages)

    def _embedding(self) -> Embedding:
        config, names = self._config, self._names
        return Embedding(
            tokens=self._read(f"{names.embedding}.weight"),
            positions=None if config.position_offset is None else self._read(f"{names.position_embedding}.weight"),
            position_offset=config.position_offset or 0,
            scale=config.embedding_scale,
            norm=self._norm(names.embedding_norm) if config.embedding_norm else None,
            widen=None if config.embedding_size is None else self._linear(names.embedding_in, bias=False),
        )

    def _head(self, embedding: torch.Tensor) -> Head:
        config, names = self._config, self._names
        return Head(
            norm=self._norm(names.final_norm) if config.final_norm else None,
            narrow=None if config.embedding_size is None else self._linear(names.embedding_out, bias=False),
            projection=self._projection(embedding),
            scale=config.logit_scale,
            softcap=config.logit_softcap,
            ranks=self._ranks,
            vocab_size=None if self._ranks is ALONE else config.vocab_size,
        )

    def _projection(self, embedding: torch.Tensor) -> LinearWeight:
        config, names = self._config, self._names
        if config.tie_word_embeddings and not self._has_own_head(embedding):
            name = f"{names.embedding}.weight"
            # Read again where it is stored as codes: products may keep them.
            is_coded = self._checkpoint.tensors[name].coded_bytes > 0
            weight = self._checkpoint.weight(name, self._dtype, self._device) if is_coded else DenseWeight(embedding)
            return self._pack(*self._own_logits(weight, None))
        weight, bias = self._weight_and_bias(names.lm_head, bias=config.lm_head_bias)
        if config.normalised_head:
            weight = DenseWeight(F.normalize(weight.dense(torch.float32)).to(self._dtype))
        return self._pack(*self._own_logits(weight, bias))

    def _own_logits(self, weight: StoredWeight, bias: torch.Tensor | None) -> tuple[StoredWeight, torch.Tensor | None]:
        """A projection to the logits of this rank, zeros where it has fewer than others, of one to all logits or to those."""
        ranks, vocab_size = self._ranks, self._config.vocab_size
        if ranks is ALONE:
            return weight, bias
        start, stop = Share(ranks.rank, ranks.size).of_vocabulary(vocab_size)
        # What a checkpoint ties, or calls tied, is there whole.
        first = 0 if weight.out_features == stop - start else start
        order = torch.full((vocabulary_width(vocab_size, ranks.size),), -1)
        order[: stop - start] = torch.arange(first, first + stop - start)
        return weight.rows(order), None if bias is None else pick(bias, order, dim=0)

    def _has_own_head(self, embedding: torch.Tensor) -> bool:
        """Whether there is another head than the tied one: config.json is wrong then, and the file right."""
        name = f"{self._names.lm_head}.weight"
        if name not in self._checkpoint.tensors or torch.equal(self._checkpoint.read(name, self._dtype, self._device), embedding):
            return False
        _log.warning("config.json ties the embeddings, but %s differs from %s.weight: it is used", name, self._names.embedding)
        return True

    def _rotary(self, kind: LayerKind) -> RotaryTable | None:
        rope = kind.rope
        if rope is None:
            return None
        rates = frequencies(rope.dims, rope.theta, rope.scaling).to(self._device)
        return RotaryTable(rates, amplitude(rope.scaling), self._config.max_position_embeddings)

    def layer(self, index: int) -> DecoderLayer | ParallelDecoderLayer | PostLnDecoderLayer:
        """Reads one layer. Raises CheckpointError if a tensor cannot be used."""
        config, names = self._config, self._names
        prefix = names.layer.format(config.first_layer + index)
        attention, mlp = self._attention(prefix, index), self._mlp_of_layer(prefix, index)
        norms = {role: self._norm(prefix + getattr(names, role)) for role in config.layer_norms}
        if config.norm_placement is NormPlacement.POST_LN:
            return PostLnDecoderLayer(attention, mlp, **norms)
        if config.residual == "parallel":
            return ParallelDecoderLayer(attention, mlp, **norms, ranks=self._ranks)
        return DecoderLayer(attention, mlp, **norms, residual_scale=config.residual_scale)

    def _attention(self, prefix: str, index: int) -> Attention:
        config, names = self._config, self._names
        kind = config.kind_of_layer[index]
        rope = config.kinds[kind].rope
        has_bias = config.output_bias and self._ranks.is_first
        weight, bias = self._weight_and_bias(prefix + names.output, bias=has_bias, transposed=names.transposed)
        if (stored_dim := config.value_dim or config.head_dim) != config.kv_head_dim:
            weight = weight.columns(padded_heads(torch.arange(weight.in_features), stored_dim, config.kv_head_dim))
        return Attention(
            heads=self._projected_heads(prefix, rope) if config.latent is None else self._latent_heads(prefix, config.latent, rope),
            output=self._pack(weight, bias),
            rotary_dims=0 if rope is None else rope.dims,
            kind=kind,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.kv_head_dim,
            sink_logits=self._read(prefix + names.sink_logits, torch.float32) if config.sink_logits else None,
            ranks=self._ranks_of_part,
        )

    def _projected_heads(self, prefix: str, rope: Rope | None) -> ProjectedHeads:
        config, names = self._config, self._names
        order = qkv_order(config, names, rope)
        padded = padded_heads(order, config.head_dim, config.kv_head_dim)
        parts = [self._weight_and_bias(prefix + name, bias=config.qkv_bias, transposed=names.transposed) for name in names.qkv]
        bias = pick(torch.cat([bias for _, bias in parts if bias is not None]), padded, dim=0) if config.qkv_bias else None
        return ProjectedHeads(
            qkv=self._pack(join([weight for weight, _ in parts]).rows(padded), bias),
            norm=self._head_norm(prefix) if config.qk_norm is not None else None,
            limit=config.qkv_limit,
            num_rotated=config.num_heads + config.num_kv_heads,
            head_dim=config.kv_head_dim,
        )

    def _head_norm(self, prefix: str) -> HeadNorm:
        config = self._config
        queries, keys = (self._norm_weight(prefix + name) for name in (self._names.q_norm, self._names.k_norm))
        if config.qk_norm == "head":
            queries, keys = queries.expand(config.num_heads, -1), keys.expand(config.num_kv_heads, -1)
        weight = torch.cat((queries.flatten(), keys.flatten())).view(-1, config.head_dim)
        return HeadNorm(weight, config.norm_eps, config.num_heads if config.qk_norm == "all" else None)

    def _latent_heads(self, prefix: str, latent: LatentAttention, rope: Rope | None) -> LatentHeads:
        config, names = self._config, self._names
        assert rope is not None and config.value_dim is not None, "latent attention turns part of its heads and says how wide values are"
        width = config.kv_head_dim
        has_query_latent = latent.query_rank is not None
        query = self._stored(f"{prefix}{names.latent_query}.weight").rows(latent_queries(latent, rope, config.num_heads, width))
        up = latent_keys_and_values(latent, rope, config.value_dim, config.num_heads, width)
        key_value = self._stored(f"{prefix}{names.latent_up}.weight").rows(up)
        down = torch.cat((torch.arange(latent.rank), latent.rank + turning_order(rope)))
        return LatentHeads(
            query_down=self._linear(prefix + names.latent_query_down, bias=False) if has_query_latent else None,
            query_norm=self._norm(prefix + names.latent_query_norm, latent.norm_eps) if has_query_latent else None,
            query=self._pack(query, None),
            latent=self._pack(self._stored(f"{prefix}{names.latent_down}.weight").rows(down), None),
            latent_norm=self._norm(prefix + names.latent_norm, latent.norm_eps),
            key_value=self._pack(key_value, None),
            rotary_dims=rope.dims,
            num_heads=config.num_heads,
            head_dim=width,
        )

    def _mlp_of_layer(self, prefix: str, index: int) -> Mlp | ExpertMlp:
        names, experts = self._names, self._config.experts
        if experts is None or index not in experts.layers:
            return self._mlp(prefix, names.mlp_in, names.mlp_down, transposed=names.transposed, ranks=self._ranks_of_part)
        if experts.clamp is not None:
            clamped = group_experts(list(self._stacked(prefix, experts.clamp)))
            return ExpertMlp(self._router(prefix, experts), clamped, None, None, self._ranks_of_part)
        mlps = [
            self._mlp(prefix + names.expert.format(number), names.expert_in, names.expert_down, is_expert=True)
            for number in range(experts.count)
        ]
        return ExpertMlp(
            router=self._router(prefix, experts),
            experts=group_experts(mlps),
            shared=self._mlp(prefix + names.shared_expert, names.expert_in, names.expert_down) if experts.shared_size else None,
            shared_gate=self._linear(prefix + names.shared_gate, bias=False) if experts.shared_gate else None,
            ranks=self._ranks_of_part,
        )

    def _stacked(self, prefix: str, clamp: Clamp) -> Iterator[ClampedMlp]:
        into, out = (prefix + name for name in self._names.expert_stacks)
        stacks = [self._read(name) for name in (into, f"{into}_bias", out, f"{out}_bias")]
        for in_weight, in_bias, out_weight, out_bias in zip(*stacks, strict=True):
            gate, up = (self._pack(DenseWeight(in_weight[:, first::2].t().contiguous()), in_bias[first::2].clone()) for first in (0, 1))
            down = self._pack(DenseWeight(out_weight.t().contiguous()), out_bias.clone() if self._ranks.is_first else None)
            yield ClampedMlp(gate, up, down, clamp.alpha, clamp.limit)

    def _router(self, prefix: str, experts: Experts) -> Router:
        names = self._names
        weight = self._read(f"{prefix}{names.router}.weight", torch.float32 if experts.float32_router else None)
        return Router(
            weight=self._pack(
                DenseWeight(weight), self._read(f"{prefix}{names.router}.bias") if experts.clamp is not None else None, weight.dtype
            ),
            per_token=experts.per_token,
            scoring=experts.scoring,
            normalise=experts.normalise,
            scale=experts.scale,
            correction=self._read(prefix + names.router_correction, torch.float32) if experts.correction else None,
            limit=experts.limit,
        )

    def _mlp(
        self,
        prefix: str,
        into: tuple[str, ...],
        down: str,
        *,
        transposed: bool = False,
        is_expert: bool = False,
        ranks: RankGroup = ALONE,
    ) -> Mlp:
        """One whose parts are summed over ranks, or behind whatever it is a part of."""
        config = self._config
        kind = {"transposed": transposed, "is_expert": is_expert}
        parts = [self._weight_and_bias(prefix + name, bias=config.mlp_bias, **kind) for name in into]
        last = self._weight_and_bias(prefix + down, bias=config.mlp_bias and self._ranks.is_first, **kind)
        if config.gated and len(parts) == 1:
            ((weight, bias),) = parts
            halves = torch.arange(weight.out_features).chunk(2)
            parts = [(weight.rows(half), None if bias is None else pick(bias, half, dim=0)) for half in halves]
        gate = self._pack(*parts[0]) if config.gated else None
        return Mlp(gate, self._pack(*parts[-1]), self._pack(*last), config.activation, ranks)

    def _norm(self, name: str, eps: float | None = None) -> Norm:
        config = self._config
        bias = self._read(f"{name}.bias") if config.norm_bias else None
        return Norm(config.norm, self._norm_weight(name), bias, config.norm_eps if eps is None else eps)

    def _norm_weight(self, name: str) -> torch.Tensor:
        """Float32 if it is stored as a difference: bfloat16 has no digits for it behind the one."""
        if not self._config.norm_offset:
            return self._read(f"{name}.weight")
        return self._read(f"{name}.weight", torch.float32) + self._config.norm_offset

    def _linear(self, name: str, *, bias: bool, transposed: bool = False) -> LinearWeight:
        return self._pack(*self._weight_and_bias(name, bias=bias, transposed=transposed))

    def _pack(self, weight: StoredWeight, bias: torch.Tensor | None, dtype: torch.dtype | None = None) -> LinearWeight:
        """For activations of a dtype; None = the model's."""
        packed = pack_stored(weight, bias, dtype or self._dtype, self._activations)
        self._sizes[_format_of(weight, packed)] += packed.num_bytes
        self._has_ints |= packed.ints is not None
        return packed

    def _weight_and_bias(
        self, name: str, *, bias: bool, transposed: bool = False, is_expert: bool = False
    ) -> tuple[StoredWeight, torch.Tensor | None]:
        """[outputs, inputs] and [outputs]."""
        weight = self._stored(f"{name}.weight")
        if is_expert and self._device.type != "cpu":
            # Devices multiply by all experts of a layer at once, which are numbers there.
            weight = DenseWeight(weight.dense(self._dtype))
        if transposed:
            if not isinstance(weight, DenseWeight):
                raise CheckpointError(
                    f"{name} is stored as {weight.format_name}: {self._config.architecture} is read with dense weights alone"
                )
            weight = DenseWeight(weight.data.t().contiguous())
        return weight, self._read(f"{name}.bias") if bias else None

    def _stored(self, name: str) -> StoredWeight:
        weight = self._checkpoint.weight(name, self._dtype, self._device)
        self._count(name)
        return weight

    def _read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        tensor = self._checkpoint.read(name, dtype or self._dtype, self._device)
        self._count(name)
        return tensor

    def _count(self, name: str) -> None:
        self._bytes_done += self._checkpoint.tensors[name].num_bytes
        if self._on_progress is not None:
            self._on_progress(self._bytes_done, self._bytes_total)


def kernel_names(device_type: str, dtype: torch.dtype, *, has_ints: bool, num_ranks: int = 1) -> str:
    """Kernels whose bits others do not have, separated by commas.

    Args:
        device_type: Where a model is.
        dtype: Of its floats.
        has_ints: Whether it multiplies integers.
        num_ranks: That compute it together.
    """
    is_triton = uses_triton(device_type)
    names = {
        "native kernels": device_type == "cpu" and native_library() is not None,
        "oneDNN's tiles": device_type == "cpu" and dtype == torch.bfloat16 and multiplies_tiles(),
        "Triton kernels": is_triton,
        "one order of sums": is_triton and is_batch_invariant(),
        "integer products": has_ints,
        f"{num_ranks} ranks": num_ranks > 1,
    }
    return ", ".join(name for name, is_used in names.items() if is_used)


def _format_of(weight: StoredWeight, packed: LinearWeight) -> str:
    """For the log: what is multiplied, and what it was made of."""
    if packed.ints is not None:
        groups = "" if packed.ints.group >= packed.ints.in_features else f" in groups of {packed.ints.group}"
        return f"int{packed.ints.bits}{groups} by int8"
    if packed.groups is not None:
        groups = "" if packed.groups.group >= packed.groups.in_features else f" in groups of {packed.groups.group}"
        return f"{'tables of 16' if packed.groups.table is not None else f'int{packed.groups.bits}'}{groups}"
    if packed.fp8 is not None:
        return f"fp8{'' if packed.fp8.group >= packed.fp8.in_features else f' in groups of {packed.fp8.group}'} by fp8"
    name = str(packed.data.dtype).removeprefix("torch.")
    return name if isinstance(weight, DenseWeight) else f"{name}, made of {weight.format_name}"
