"""One layer of a decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compute_svc.kernels.linear import RowNorm
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.layers.attention import Attention
from compute_svc.layers.mlp import ExpertMlp, Mlp
from compute_svc.layers.norm import Norm
from compute_svc.layers.step import Step
from compute_svc.parallel.groups.rank_group import ALONE, RankGroup


@dataclass(frozen=True, slots=True, eq=False)
class DecoderLayer:
    """Attention, then an MLP, each added to the residual stream; norms before them, behind them or both.

    Attributes:
        attention_norm: Before attention; None = none.
        attention_output_norm: Behind attention, before it is added; None = none.
        mlp_norm: Before the MLP; None = none.
        mlp_output_norm: Behind the MLP; None = none.
        residual_scale: What both are multiplied by before they are added; None = one.
    """

    attention: Attention
    mlp: Mlp | ExpertMlp
    attention_norm: Norm | None = None
    attention_output_norm: Norm | None = None
    mlp_norm: Norm | None = None
    mlp_output_norm: Norm | None = None
    residual_scale: float | None = None

    def forward(self, hidden: torch.Tensor, kv: KvLayer, step: Step) -> torch.Tensor:
        """[P, hidden] to [P, hidden].

        Effects: writes the step's keys and values into kv, and step.attended.
        """
        x, norm = _normed(hidden, self.attention_norm, self.attention)
        if self.attention_output_norm is None and self.residual_scale is None:
            hidden = self.attention.forward(x, hidden, kv, step, norm)
        else:
            hidden = hidden + self._out(self.attention.forward(x, None, kv, step, norm), self.attention_output_norm)
        x, norm = _normed(hidden, self.mlp_norm, self.mlp)
        if self.mlp_output_norm is None and self.residual_scale is None:
            return self.mlp.forward(x, hidden, step.num_tokens, norm)
        return hidden + self._out(self.mlp.forward(x, None, step.num_tokens, norm), self.mlp_output_norm)

    def _out(self, x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        x = x if norm is None else norm.forward(x)
        # Two operations, each rounded by itself: a fused multiplication and addition would round the last elements of a vector otherwise.
        return x if self.residual_scale is None else x.mul_(self.residual_scale)


@dataclass(frozen=True, slots=True, eq=False)
class ParallelDecoderLayer:
    """Attention and an MLP side by side, both of the normalised hidden state and added to it.

    Attributes:
        attention_norm: Before attention.
        mlp_norm: Before the MLP; None = the same norm as before attention.
        ranks: Have the other parts of both, which are of one rank alone themselves: one sum does for the two.
    """

    attention: Attention
    mlp: Mlp | ExpertMlp
    attention_norm: Norm
    mlp_norm: Norm | None = None
    ranks: RankGroup = ALONE

    def forward(self, hidden: torch.Tensor, kv: KvLayer, step: Step) -> torch.Tensor:
        """See `DecoderLayer`."""
        x = self.attention_norm.forward(hidden)
        y = x if self.mlp_norm is None else self.mlp_norm.forward(hidden)
        attended = self.attention.forward(x, self.ranks.once(hidden), kv, step)
        return self.ranks.sum_(self.mlp.forward(y, attended, step.num_tokens))


@dataclass(frozen=True, slots=True, eq=False)
class PostLnDecoderLayer:
    """Attention, then an MLP, each added to its input, the sums normalised, as in 2017 (arXiv 1706.03762)."""

    attention: Attention
    mlp: Mlp | ExpertMlp
    attention_output_norm: Norm
    mlp_output_norm: Norm

    def forward(self, hidden: torch.Tensor, kv: KvLayer, step: Step) -> torch.Tensor:
        """See `DecoderLayer`."""
        hidden = self.attention_output_norm.forward(self.attention.forward(hidden, hidden, kv, step))
        return self.mlp_output_norm.forward(self.mlp.forward(hidden, hidden, step.num_tokens))


def _normed(x: torch.Tensor, norm: Norm | None, part: Attention | Mlp | ExpertMlp) -> tuple[torch.Tensor, RowNorm | None]:
    """What a part is given: normalised rows, or rows and the norm where its first product does both."""
    if norm is None:
        return x, None
    return (x, norm.of_rows) if norm.of_rows is not None and part.takes_norm else (norm.forward(x), None)
