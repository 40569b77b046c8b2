"""Self-attention over paged KV."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compute_svc.kernels.decode_attention import decode_attention
from compute_svc.kernels.linear import LinearWeight, RowNorm, linear
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.place_heads import place_heads
from compute_svc.kernels.prefill_attention import prefill_attention
from compute_svc.kernels.rms_norm import rms_norm
from compute_svc.kernels.rotary import rotary_
from compute_svc.layers.heads import LatentHeads, ProjectedHeads
from compute_svc.layers.step import Step
from compute_svc.parallel.groups.rank_group import ALONE, RankGroup


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Grouped-query attention.

    Attributes:
        heads: Hidden states to heads.
        output: Heads back to the hidden size.
        rotary_dims: How many of a head's first dimensions are rotated; 0 = none.
        kind: Index of the layer's kind, in step.kinds.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: W, width of a head.
        sink_logits: [num_heads] float32, a learnt score of nothing in every softmax; None = there are none.
        ranks: Have the other heads; what `output` gives is summed over them.
    """

    heads: ProjectedHeads | LatentHeads
    output: LinearWeight
    rotary_dims: int
    kind: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    sink_logits: torch.Tensor | None = None
    ranks: RankGroup = ALONE

    @property
    def takes_norm(self) -> bool:
        """Whether `forward` takes a norm."""
        return self.heads.takes_norm

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None, kv: KvLayer, step: Step, norm: RowNorm | None = None) -> torch.Tensor:
        """residual + attention(x), both [P, hidden]; attention alone without a residual.

        Args:
            x: The hidden states, normalised unless there is a norm.
            residual: What to add; the sum may be in its memory.
            kv: This layer's pages.
            step: The batch.
            norm: Of x; only if `takes_norm`.

        Effects: writes the step's keys and values into kv, and step.attended.
        """
        kind = step.kinds[self.kind]
        heads = self.heads.forward(x, norm)  # [P, num_heads + 2 * num_kv_heads, W]
        # Before place_heads rotates the queries to their own positions.
        sink_queries = None if kind.sink_turn is None else self._rotated_for_sinks(heads[:, : self.num_heads], *kind.sink_turn)
        place_heads(
            heads,
            kv,
            step.slots,
            kind.cos,
            kind.sin,
            num_heads=self.num_heads,
            rotary_dims=self.rotary_dims,
            norm=self.heads.placed_norm,
        )
        queries = heads[: step.num_tokens, : self.num_heads]
        if kind.decode is not None:
            sink_decodes = None if sink_queries is None else sink_queries[: step.num_decodes]
            attended = step.attended[: step.num_decodes]
            decode_attention(queries[: step.num_decodes], kv, kind.decode, attended, sink_q=sink_decodes, sink_logits=self.sink_logits)
        if kind.prefill is not None:
            prefill_attention(queries, kv, kind.prefill, step.attended, sink_q=sink_queries, sink_logits=self.sink_logits)
        return self.ranks.sum_(linear(step.attended, self.output, add=self.ranks.once(residual)))

    def _rotated_for_sinks(self, queries: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """[P, num_heads, W], new memory: queries, neither rotated nor normalised by `placed_norm` yet, as the keys of sink tokens want them."""
        rotated = queries.clone()
        norm = self.heads.placed_norm
        if norm is not None:
            of_queries = rotated[..., : norm.weight.shape[1]]
            rms_norm(of_queries, norm.weight[: self.num_heads], norm.eps, out=of_queries)
        rotary_(rotated[..., : self.rotary_dims], cos, sin)
        return rotated
