"""Self-attention over paged KV."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compute_svc.kernels.decode_attention import decode_attention
from compute_svc.kernels.kv_write import kv_write
from compute_svc.kernels.linear import LinearWeight, linear
from compute_svc.kernels.prefill_attention import prefill_attention
from compute_svc.kernels.rms_norm import rms_norm
from compute_svc.kernels.rotary import rotary_
from compute_svc.layers.step import Step


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Grouped-query attention.

    Attributes:
        qkv: Query, key and value heads of a hidden state, in this order.
        output: Heads back to the hidden size.
        qk_norm: [num_heads + num_kv_heads, D], the norm of each query and key head; None = they are not normalised.
        qk_norm_eps: Added to their mean square.
        qkv_limit: Queries, keys and values are clamped to plus or minus this; None = not.
        rotary_dims: How many of a head's first dimensions are rotated; 0 = none.
        kind: Index of the layer's kind, in step.kinds.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: D.
    """

    qkv: LinearWeight
    output: LinearWeight
    qk_norm: torch.Tensor | None
    qk_norm_eps: float
    qkv_limit: float | None
    rotary_dims: int
    kind: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None, kv: torch.Tensor, step: Step) -> torch.Tensor:
        """residual + attention(x), both [P, hidden]; attention alone without a residual.

        Args:
            x: The normalised hidden states.
            residual: What to add.
            kv: [2 * num_kv_heads, num_pages, page_size, D], this layer's pages.
            step: The batch.

        Effects: writes the step's keys and values into kv, and step.attended.
        """
        kind = step.kinds[self.kind]
        heads = linear(x, self.qkv).view(len(x), -1, self.head_dim)  # [P, num_heads + 2 * num_kv_heads, D]
        if self.qkv_limit is not None:
            heads.clamp_(-self.qkv_limit, self.qkv_limit)
        rotated = heads[:, : self.num_heads + self.num_kv_heads]
        if self.qk_norm is not None:
            rotated.copy_(rms_norm(rotated, self.qk_norm, self.qk_norm_eps))
        # Before rotary_ rotates the queries to their own positions.
        sink_queries = None if kind.sink_turn is None else self._rotated_for_sinks(heads[:, : self.num_heads], *kind.sink_turn)
        if self.rotary_dims:
            rotary_(rotated[..., : self.rotary_dims], kind.cos, kind.sin)
        kv_write(kv, step.slots, heads[: step.num_tokens, self.num_heads :])
        queries = heads[: step.num_tokens, : self.num_heads]
        if kind.decode is not None:
            sink_decodes = None if sink_queries is None else sink_queries[: step.num_decodes]
            decode_attention(queries[: step.num_decodes], kv, kind.decode, step.attended[: step.num_decodes], sink_q=sink_decodes)
        if kind.prefill is not None:
            prefill_attention(queries, kv, kind.prefill, step.attended, sink_q=sink_queries)
        return linear(step.attended, self.output, add=residual)

    def _rotated_for_sinks(self, queries: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """[P, num_heads, D], new memory: queries, not rotated yet, rotated as the keys of sink tokens want them."""
        rotated = queries.clone()
        rotary_(rotated[..., : self.rotary_dims], cos, sin)
        return rotated
