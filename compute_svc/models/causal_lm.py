"""A decoder-only language model over paged KV."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from compute_svc.forward_batch import ForwardBatch
from compute_svc.kernels.attention_spec import AttentionSpec
from compute_svc.kernels.decode_attention import plan_decode
from compute_svc.kernels.linear import MIN_ROWS, LinearWeight, linear
from compute_svc.kernels.prefill_attention import plan_prefill
from compute_svc.kernels.rms_norm import rms_norm
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.decoder_layer import DecoderLayer
from compute_svc.layers.rotary_table import RotaryTable
from compute_svc.layers.step import Step
from compute_svc.models.config import ModelConfig


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CausalLM:
    """Token ids to logits.

    On a CPU with oneDNN, logits and KV of a token depend on its request's tokens up to it and on nothing else, bit for bit: not on the
    other requests of the batch, nor on how its prompt was split into steps.

    Attributes:
        config: What the model is.
        embedding: [vocab_size, hidden].
        layers: In order.
        final_norm: [hidden].
        lm_head: Logits of a hidden state.
        rotary: Sines and cosines of positions.
    """

    config: ModelConfig
    embedding: torch.Tensor
    layers: tuple[DecoderLayer, ...]
    final_norm: torch.Tensor
    lm_head: LinearWeight
    rotary: RotaryTable
    _specs: dict[tuple[int, int], AttentionSpec] = field(default_factory=dict)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """Logits of the rows a batch asks for, float32 [L, vocab_size].

        Effects: writes keys and values of all the batch's tokens into kv; clears what is left of the pages they begin.

        Raises:
            ValueError: kv was made for another model, or the batch has no tokens.
        """
        if batch.num_tokens == 0:
            raise ValueError("a batch must have tokens")
        step = self._prepare(batch, kv)
        hidden = F.embedding(_padded(batch.token_ids.to(self.embedding.device)), self.embedding)  # [P, hidden]
        for index, layer in enumerate(self.layers):
            hidden = layer.forward(hidden, kv.kv(index), step)
        rows = hidden.index_select(0, _padded(batch.logit_rows.to(hidden.device)))
        logits = linear(rms_norm(rows, self.final_norm, self.config.rms_norm_eps), self.lm_head)
        return logits[: len(batch.logit_rows)].float()

    def _prepare(self, batch: ForwardBatch, kv: KvPageStore) -> Step:
        device = self.embedding.device
        page_table = batch.page_table.to(device)
        _clear_begun_pages(batch, page_table, kv)
        spec = self._spec(kv)
        decodes = batch.num_decodes
        decode = prefill = None
        if decodes:
            decode = plan_decode(page_table[:decodes], batch.kv_lengths[:decodes], spec)
        if decodes < batch.num_requests:
            prefill = plan_prefill(page_table[decodes:], batch.kv_lengths[decodes:], batch.query_starts[decodes:], spec)
        cos, sin = self.rotary.at(_padded(batch.positions.to(device)), max(batch.kv_lengths))
        attended = self.embedding.new_zeros((len(cos), self.config.num_heads * self.config.head_dim))
        return Step(batch.num_tokens, decodes, batch.slots.to(device), attended, cos, sin, decode, prefill)

    def _spec(self, kv: KvPageStore) -> AttentionSpec:
        config = self.config
        made_for = (kv.num_layers, kv.num_kv_heads, kv.head_dim, kv.dtype)
        own = (config.num_layers, config.num_kv_heads, config.head_dim, self.embedding.dtype)
        if made_for != own:
            raise ValueError(f"kv is for (layers, kv heads, head_dim, dtype) = {made_for}, the model has {own}")
        sizes = (kv.page_size_tokens, kv.num_pages)
        if sizes not in self._specs:
            self._specs[sizes] = AttentionSpec(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                page_size_tokens=kv.page_size_tokens,
                num_pages=kv.num_pages,
                scale=config.head_dim**-0.5,
                window=config.sliding_window,
            )
        return self._specs[sizes]


def _padded(indices: torch.Tensor) -> torch.Tensor:
    """Indices [n] with zeros added up to MIN_ROWS, so that no product of the pass has fewer rows."""
    missing = MIN_ROWS - len(indices)
    return indices if missing <= 0 else F.pad(indices, (0, missing))


def _clear_begun_pages(batch: ForwardBatch, page_table: torch.Tensor, kv: KvPageStore) -> None:
    """Clears the pages that the batch begins and does not fill.

    Attention reads whole pages and gives what lies past a request's end the weight zero; that is only nothing if it is finite, and a
    page's last owner may have left anything.
    """
    size = kv.page_size_tokens
    starts = batch.query_starts
    begun = [
        (request, (length - 1) // size)
        for request, length in enumerate(batch.kv_lengths)
        if length % size and length // size * size >= length - (starts[request + 1] - starts[request])
    ]
    if begun:
        requests, places = zip(*begun, strict=True)
        kv.clear(page_table[list(requests), list(places)])
