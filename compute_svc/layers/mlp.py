"""The MLP of a layer: one, or a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from compute_svc.kernels.gated_linear import gated_linear
from compute_svc.kernels.linear import Activation, LinearWeight, linear, padded_count


@dataclass(frozen=True, slots=True, eq=False)
class Mlp:
    """down(activation(gate(x)) * up(x)), or without a gate down(activation(up(x)))."""

    gate: LinearWeight | None
    up: LinearWeight
    down: LinearWeight
    activation: Activation

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """residual + mlp(x), both [P, hidden]; the MLP alone without a residual."""
        if self.gate is None:
            return linear(linear(x, self.up, activation=self.activation), self.down, add=residual)
        return linear(gated_linear(x, self.gate, self.up, self.activation), self.down, add=residual)


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMlp:
    """Some experts' MLPs of each token, weighted and summed in the order of the experts' numbers.

    What a token gets depends on it alone: its experts are chosen by its own scores, and each row of a product by its own row. On a CPU only
    the chosen experts are computed. On a device every expert computes every token, as the host would have to wait to learn which were chosen:
    no dearer for few tokens, which need most experts' weights anyway, and count / per_token times the work for many.

    Attributes:
        router: Scores of experts.
        experts: All of them.
        per_token: How many compute a token.
        normalise: Their weights are scaled to sum to one.
        shared: An MLP that computes every token; None = none.
        shared_gate: [1, hidden], what that MLP's output is scaled by, through a sigmoid; None = not.
    """

    router: LinearWeight
    experts: tuple[Mlp, ...]
    per_token: int
    normalise: bool
    shared: Mlp | None
    shared_gate: LinearWeight | None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """residual + experts(x), both [P, hidden]; the experts alone without a residual."""
        scores = torch.softmax(linear(x, self.router).float(), dim=-1)
        weights, chosen = scores.topk(self.per_token, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        # [P, experts]: a token's weight of each expert, 0 where it is not chosen.
        shares = torch.zeros_like(scores).scatter_(1, chosen, weights)
        is_chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        if x.device.type == "cpu":
            self._add_chosen(total, x, shares, is_chosen)
        else:
            self._add_all(total, x, shares, is_chosen)
        if self.shared is not None:
            shared = self.shared.forward(x, None).float()
            total += shared if self.shared_gate is None else shared * linear(x, self.shared_gate, activation="sigmoid").float()
        result = total.to(x.dtype)
        return result if residual is None else result + residual

    def _add_chosen(self, total: torch.Tensor, x: torch.Tensor, shares: torch.Tensor, is_chosen: torch.Tensor) -> None:
        for index in is_chosen.any(dim=0).nonzero().flatten().tolist():
            rows = is_chosen[:, index].nonzero().flatten()
            padded = F.pad(rows, (0, padded_count(len(rows)) - len(rows)))
            answer = self.experts[index].forward(x.index_select(0, padded), None)[: len(rows)].float()
            total.index_add_(0, rows, answer * shares[rows, index, None])

    def _add_all(self, total: torch.Tensor, x: torch.Tensor, shares: torch.Tensor, is_chosen: torch.Tensor) -> None:
        for index, expert in enumerate(self.experts):
            answer = expert.forward(x, None).float() * shares[:, index, None]
            # Filled, not left to a share of zero: what was not chosen counts for nothing even where it is not finite.
            total += answer.masked_fill_(~is_chosen[:, index, None], 0.0)
