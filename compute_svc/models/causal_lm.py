"""A decoder-only language model over paged KV."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.decode_attention import decodes_on_device, plan_decode, plan_decode_on_device
from compute_svc.kernels.linear import LinearWeight, linear, padded_count
from compute_svc.kernels.prefill_attention import plan_prefill, prefills_by_kernel
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.decoder_layer import DecoderLayer, ParallelDecoderLayer, PostLnDecoderLayer
from compute_svc.layers.forward_batch import DecodeColumns, ForwardBatch, ForwardOutput, batch_on
from compute_svc.layers.norm import Norm
from compute_svc.layers.rotary_table import RotaryTable
from compute_svc.layers.step import Step, StepKind
from compute_svc.models.config import LayerKind, ModelConfig
from compute_svc.parallel.groups.rank_group import ALONE, RankGroup


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What becomes of token ids before the first layer.

    Attributes:
        tokens: [vocab_size, embedding size].
        positions: [positions, hidden], of learnt positions; None = there are none.
        position_offset: Of the first position in that table.
        scale: What a token's embedding is multiplied by; None = one.
        norm: Of the embeddings; None = none.
        widen: From the embedding size to the hidden size; None = they are the same.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None = None
    position_offset: int = 0
    scale: float | None = None
    norm: Norm | None = None
    widen: LinearWeight | None = None

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[P, hidden] for [P] int64 ids at [P] int64 positions."""
        hidden = F.embedding(token_ids, self.tokens)
        if self.widen is not None:
            hidden = linear(hidden, self.widen)
        if self.scale is not None:
            # The factor is rounded to the activations' dtype first, as the models were trained.
            hidden = hidden * torch.full((), self.scale, dtype=hidden.dtype, device=hidden.device)
        if self.positions is not None:
            hidden = hidden + F.embedding(positions + self.position_offset, self.positions)
        return hidden if self.norm is None else self.norm.forward(hidden)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What becomes of hidden states behind the last layer.

    Attributes:
        norm: None = none.
        narrow: From the hidden size to the embedding size; None = they are the same.
        projection: To logits.
        scale: What logits are multiplied by; None = one.
        softcap: Logits l become softcap * tanh(l / softcap); None = they stay.
        ranks: Project to the other logits; the first of them gets all.
        vocab_size: Of all ranks together; None = that of the projection.
    """

    norm: Norm | None
    narrow: LinearWeight | None
    projection: LinearWeight
    scale: float | None = None
    softcap: float | None = None
    ranks: RankGroup = ALONE
    vocab_size: int | None = None

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """[P, hidden] for [P, hidden]: what is projected."""
        return hidden if self.norm is None else self.norm.forward(hidden)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[P, vocab_size] float32 for [P, hidden]; on ranks that are not the first, those that they have."""
        hidden = self.normed(hidden)
        if self.narrow is not None:
            hidden = linear(hidden, self.narrow)
        logits = linear(hidden, self.projection).float()
        if self.scale is not None:
            logits *= self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits if self.vocab_size is None else self.ranks.side_by_side(logits, self.vocab_size)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CausalLM:
    """Token ids to logits; a stage of a pipeline (`StagedLM`) has some of the layers, and behind the first neither embedding nor head.

    On a CPU, logits and KV of a token depend on its request's tokens up to it and on nothing else, bit for bit: not on the
    other requests of the batch, nor on how its prompt was split into steps.

    On another device that is promised where `backend.is_batch_invariant` and `attends_in_one_order`, but for this: decode rows are of one kind and
    tokens of prompts of another, which differ in the last bits.

    Elsewhere it is not promised: a library's product may sum in another order for another number of rows, so the last bits can
    change with the size of a step. What is kept there: products have few numbers of rows (`padded_count`) and are summed in float32, those
    of float32 numbers without TF32; softmax and norms are float32 inside; nothing in a layer goes request by request, and nothing in a pass
    waits for the device, as long as the batch is on it.

    Attributes:
        config: What the model is.
        embedding: Before the layers; None = layers before these are another stage's.
        layers: In order.
        head: Behind them; None = the first stage has it.
        rotary: Sines and cosines of positions, for each kind of layer; None where nothing turns.
        dtype: Of weights and activations.
        device: Where its weights are.
        kernels: Which it is computed with, where others round otherwise, for whoever compares replicas.
    """

    config: ModelConfig
    embedding: Embedding | None
    layers: tuple[DecoderLayer | ParallelDecoderLayer | PostLnDecoderLayer, ...]
    head: Head | None
    rotary: tuple[RotaryTable | None, ...]
    dtype: torch.dtype
    device: torch.device
    kernels: str = ""
    _specs: dict[tuple[int, int, torch.dtype], tuple[AttentionSpec, ...]] = field(default_factory=dict)

    @property
    def kv_window(self) -> int | None:
        """See `ModelConfig`."""
        return self.config.kv_window

    @property
    def sinks(self) -> int:
        """See `ModelConfig`."""
        return self.config.sinks

    @property
    def hidden_size(self) -> int:
        """Numbers of a vector of hidden states."""
        return self.config.hidden_size

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """Logits of the rows a batch asks for, float32 [L, vocab_size]; effects and errors as of `forward_with_hidden`."""
        return self.forward_with_hidden(batch, kv).logits

    @torch.inference_mode()
    def forward_with_hidden(self, batch: ForwardBatch, kv: KvPageStore) -> ForwardOutput:
        """Logits and hidden states of the rows a batch asks for.

        Effects: writes keys and values of all the batch's tokens into kv; clears what is left of the pages they begin.

        Raises:
            ValueError: kv was made for another model, or the batch has no tokens.
        """
        batch = batch_on(batch, self.device)
        return self.read(self.compute(batch, kv), batch.logit_rows, batch.hidden_rows)

    def compute(self, batch: ForwardBatch, kv: KvPageStore, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """[P, hidden] behind the layers: of the T tokens of a batch, then padding; P is `padded_count` of T.

        Args:
            batch: On this model's device.
            kv: Keys and values of these layers.
            hidden: [P, hidden], what the layers before these give; None = the tokens are embedded.

        Effects and errors: as of `forward_with_hidden`.
        """
        if batch.num_tokens == 0:
            raise ValueError("a batch must have tokens")
        positions = padded(batch.positions, self.dtype)
        step = self.prepare(batch, positions, kv)
        if hidden is None:
            assert self.embedding is not None, "a stage behind the first gets hidden states"
            hidden = self.embedding.forward(padded(batch.token_ids, self.dtype), positions)
        for index, layer in enumerate(self.layers):
            hidden = layer.forward(hidden, kv.kv(index), step)
        return hidden

    def read(self, hidden: torch.Tensor, logit_rows: torch.Tensor, hidden_rows: torch.Tensor | None) -> ForwardOutput:
        """What rows behind the last layer say.

        Args:
            hidden: [n, hidden], at least one.
            logit_rows: [L] int64, on its device.
            hidden_rows: [H] int64 there; None = no vectors are wanted.
        """
        assert self.head is not None, "a stage behind the first has no head"
        rows = hidden.index_select(0, padded(logit_rows, self.dtype))
        vectors = None
        if hidden_rows is not None:
            vectors = self.head.normed(hidden.index_select(0, padded(hidden_rows, self.dtype)))[: len(hidden_rows)].float()
        return ForwardOutput(self.head.forward(rows)[: len(logit_rows)], vectors)

    def attends_in_one_order(self, kv: KvPageStore) -> bool:
        """Whether every attention over that store has Triton kernels, which can keep to one order of sums (`backend.is_batch_invariant`)."""
        specs = self._kind_specs(kv)
        return all(decodes_on_device(spec, self.device) and prefills_by_kernel(spec, self.device) for spec in specs)

    def takes_graphs(self, kv: KvPageStore) -> bool:
        """Whether `decode` computes this model over that store: every attention has a kernel that reads lengths on the device, and none reads what it left."""
        # Torch's own operations read whole pages: what lies past a request's end in one that `decode` began would count if it were not finite.
        return self.device.type == "cuda" and self.attends_in_one_order(kv)

    @torch.inference_mode()
    def decode(self, columns: DecodeColumns, kv: KvPageStore, *, max_tokens: int) -> torch.Tensor:
        """[B, vocab_size] float32, logits behind one token each of B requests; where `takes_graphs`.

        What is launched depends on B and on max_tokens, never on what the columns hold, so that a CUDA graph may hold it. Pages that are begun are not
        cleared: these kernels read no slot past a request's end.

        Args:
            columns: The tokens.
            kv: Where keys and values are.
            max_tokens: Most tokens of a request, this one included.

        Effects: writes keys and values into kv; on ranks that are not the first, that one's token ids into the columns.
        """
        assert self.embedding is not None and self.head is not None, "graphs are of whole models"
        self.head.ranks.from_first_(columns.token_ids)
        kinds = tuple(
            _decode_kind(columns, spec, None if rotary is None else _turns(rotary, columns.positions, max_tokens, spec), max_tokens)
            for spec, rotary in zip(self._kind_specs(kv), self.rotary, strict=True)
        )
        count = len(columns.token_ids)
        attended = torch.empty((count, self.config.num_heads * self.config.kv_head_dim), dtype=self.dtype, device=self.device)
        step = Step(count, count, columns.slots, attended, kinds)
        hidden = self.embedding.forward(columns.token_ids, columns.positions)
        for index, layer in enumerate(self.layers):
            hidden = layer.forward(hidden, kv.kv(index), step)
        return self.head.forward(hidden)

    def prepare(self, batch: ForwardBatch, positions: torch.Tensor, kv: KvPageStore) -> Step:
        """What all layers share of a batch.

        Args:
            batch: What is computed.
            positions: [P] int64, those of its tokens, padded.
            kv: Where its keys and values go; pages that it begins are cleared.
        """
        page_table = batch.page_table.to(self.device)
        if len(batch.begun_pages):
            kv.clear(batch.begun_pages.to(self.device))
        kinds = tuple(
            _prepare_kind(batch, page_table, spec, None if rotary is None else _turns(rotary, positions, batch.position_limit, spec))
            for spec, rotary in zip(self._kind_specs(kv), self.rotary, strict=True)
        )
        width = self.config.num_heads * self.config.kv_head_dim
        attended = torch.zeros((len(positions), width), dtype=self.dtype, device=self.device)
        return Step(batch.num_tokens, batch.num_decodes, batch.slots.to(self.device), attended, kinds)

    def _kind_specs(self, kv: KvPageStore) -> tuple[AttentionSpec, ...]:
        config = self.config
        made_for = (kv.num_layers, kv.num_kv_heads, kv.head_dim)
        own = (config.num_layers, config.num_kv_heads, config.kv_head_dim)
        if made_for != own:
            raise ValueError(f"kv is for (layers, kv heads, head_dim) = {made_for}, the model has {own}")
        store = (kv.page_size_tokens, kv.num_pages, kv.format.dtype)
        if store not in self._specs:
            self._specs[store] = tuple(_attention_spec(config, kind, kv) for kind in config.kinds)
        return self._specs[store]


def _attention_spec(config: ModelConfig, kind: LayerKind, kv: KvPageStore) -> AttentionSpec:
    return AttentionSpec(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.kv_head_dim,
        page_size_tokens=kv.page_size_tokens,
        num_pages=kv.num_pages,
        scale=config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale,
        window=kind.window,
        slopes=config.slopes,
        rounded_slopes=config.rounded_slopes,
        softcap=config.attention_softcap,
        sinks=config.sinks,
        stored=kv.format.dtype,
    )


class _Turns(NamedTuple):
    """How queries and keys turn, and queries where they meet sinks: cos and sin, see `StepKind`."""

    own: tuple[torch.Tensor, torch.Tensor]
    sinks: tuple[torch.Tensor, torch.Tensor] | None


def _turns(rotary: RotaryTable, positions: torch.Tensor, limit: int, spec: AttentionSpec) -> _Turns:
    own = rotary.at(positions, limit)
    if not spec.sinks:
        return _Turns(own, None)
    assert spec.window is not None, "sinks come with a window"
    return _Turns(own, rotary.at(positions.clamp(max=spec.sinks + spec.window - 1), limit))


def _prepare_kind(batch: ForwardBatch, page_table: torch.Tensor, spec: AttentionSpec, turns: _Turns | None) -> StepKind:
    decodes = batch.num_decodes
    decode = prefill = None
    if decodes:
        decode = plan_decode(page_table[:decodes], batch.kv_lengths[:decodes], spec)
    if decodes < batch.num_requests:
        prefill = plan_prefill(page_table[decodes:], batch.kv_lengths[decodes:], batch.query_starts[decodes:], spec)
    if turns is None:
        nothing = torch.empty(0, device=page_table.device)
        return StepKind(nothing, nothing, decode, prefill)
    return StepKind(*turns.own, decode, prefill, turns.sinks)


def _decode_kind(columns: DecodeColumns, spec: AttentionSpec, turns: _Turns | None, max_tokens: int) -> StepKind:
    decode = plan_decode_on_device(columns.page_table, columns.kv_lengths, max_tokens, spec)
    if turns is None:
        nothing = torch.empty(0, device=columns.slots.device)
        return StepKind(nothing, nothing, decode, None)
    return StepKind(*turns.own, decode, None, turns.sinks)


def padded(indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Indices [n] with zeros added, so that the products of all passes, of activations of a dtype, have one of few numbers of rows."""
    missing = padded_count(len(indices), dtype, indices.device) - len(indices)
    return F.pad(indices, (0, missing)) if missing else indices
