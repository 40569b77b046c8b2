"""One layer of a decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compute_svc.layers.attention import Attention
from compute_svc.layers.mlp import ExpertMlp, Mlp
from compute_svc.layers.norm import Norm
from compute_svc.layers.step import Step


@dataclass(frozen=True, slots=True, eq=False)
class DecoderLayer:
    """Attention, then an MLP, each of the normalised hidden state and added to it.

    Attributes:
        attention_norm: Before attention.
        attention_output_norm: Behind attention, before it is added; None = none.
        mlp_norm: Before the MLP.
        mlp_output_norm: Behind the MLP; None = none.
    """

    attention_norm: Norm
    attention: Attention
    attention_output_norm: Norm | None
    mlp_norm: Norm
    mlp: Mlp | ExpertMlp
    mlp_output_norm: Norm | None

    def forward(self, hidden: torch.Tensor, kv: torch.Tensor, step: Step) -> torch.Tensor:
        """[P, hidden] to [P, hidden].

        Effects: writes the step's keys and values into kv, and step.attended.
        """
        x = self.attention_norm.forward(hidden)
        if self.attention_output_norm is None:
            hidden = self.attention.forward(x, hidden, kv, step)
        else:
            hidden = hidden + self.attention_output_norm.forward(self.attention.forward(x, None, kv, step))
        x = self.mlp_norm.forward(hidden)
        if self.mlp_output_norm is None:
            return self.mlp.forward(x, hidden, step.num_tokens)
        return hidden + self.mlp_output_norm.forward(self.mlp.forward(x, None, step.num_tokens))


@dataclass(frozen=True, slots=True, eq=False)
class ParallelDecoderLayer:
    """Attention and an MLP side by side, both of the normalised hidden state and added to it.

    Attributes:
        attention_norm: Before attention.
        mlp_norm: Before the MLP; None = the same norm as before attention.
    """

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm | None
    mlp: Mlp | ExpertMlp

    def forward(self, hidden: torch.Tensor, kv: torch.Tensor, step: Step) -> torch.Tensor:
        """See `DecoderLayer`."""
        x = self.attention_norm.forward(hidden)
        y = x if self.mlp_norm is None else self.mlp_norm.forward(hidden)
        return self.mlp.forward(y, self.attention.forward(x, hidden, kv, step), step.num_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class PostNormDecoderLayer:
    """Attention, then an MLP, each added to its input, the sums normalised."""

    attention: Attention
    attention_norm: Norm
    mlp: Mlp | ExpertMlp
    mlp_norm: Norm

    def forward(self, hidden: torch.Tensor, kv: torch.Tensor, step: Step) -> torch.Tensor:
        """See `DecoderLayer`."""
        hidden = self.attention_norm.forward(self.attention.forward(hidden, hidden, kv, step))
        return self.mlp_norm.forward(self.mlp.forward(hidden, hidden, step.num_tokens))
