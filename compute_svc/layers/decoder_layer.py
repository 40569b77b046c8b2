"""One layer of a decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compute_svc.kernels.rms_norm import rms_norm
from compute_svc.layers.attention import Attention
from compute_svc.layers.gated_mlp import GatedMlp
from compute_svc.layers.step import Step


@dataclass(frozen=True, slots=True, eq=False)
class DecoderLayer:
    """Attention and an MLP, each on the normalised hidden state and added to it.

    Attributes:
        attention_norm: [hidden].
        mlp_norm: [hidden].
        eps: Added to the mean squares of both norms.
    """

    attention_norm: torch.Tensor
    attention: Attention
    mlp_norm: torch.Tensor
    mlp: GatedMlp
    eps: float

    def forward(self, hidden: torch.Tensor, kv: torch.Tensor, step: Step) -> torch.Tensor:
        """[P, hidden] to [P, hidden].

        Effects: writes the step's keys and values into kv, and step.attended.
        """
        hidden = self.attention.forward(rms_norm(hidden, self.attention_norm, self.eps), hidden, kv, step)
        return self.mlp.forward(rms_norm(hidden, self.mlp_norm, self.eps), hidden)
