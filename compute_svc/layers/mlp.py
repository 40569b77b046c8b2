"""The MLP of a layer: one, or a mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F

from compute_svc.kernels.gated_linear import gated_linear, lay_out_gated
from compute_svc.kernels.grouped_mlp import Clamp, GroupedMlps, group_mlps, grouped_mlp
from compute_svc.kernels.linear import Activation, LinearWeight, RowNorm, is_whole_mlp, linear, padded_count, takes_norm, whole_mlp
from compute_svc.layers.router import Router
from compute_svc.parallel.groups.rank_group import ALONE, RankGroup


@dataclass(frozen=True, slots=True, eq=False)
class Mlp:
    """down(activation(gate(x)) * up(x)), or without a gate down(activation(up(x))); summed over ranks that have a part of its width each."""

    gate: LinearWeight | None
    up: LinearWeight
    down: LinearWeight
    activation: Activation
    ranks: RankGroup = ALONE
    is_whole: bool = field(init=False)
    """Whether it is computed in one call."""
    takes_norm: bool = field(init=False)
    """Whether `forward` takes a norm."""

    def __post_init__(self) -> None:
        """Sees how it is computed, and has the weights laid out for it."""
        if self.gate is not None:
            gate, up = lay_out_gated(self.gate, self.up)
            object.__setattr__(self, "gate", gate)
            object.__setattr__(self, "up", up)
        is_whole = is_whole_mlp(self.gate, self.up, self.down)
        is_plain = self.up.layout == "plain" and (self.gate is None or self.gate.layout == "plain")
        object.__setattr__(self, "is_whole", is_whole)
        object.__setattr__(self, "takes_norm", is_whole or (is_plain and takes_norm(self.up)))

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, num_tokens: int | None = None, norm: RowNorm | None = None
    ) -> torch.Tensor:
        """residual + mlp(x), both [P, hidden]; the MLP alone without a residual, in whose memory the sum may be.

        How many of the rows are tokens changes nothing here: rows of padding read no weight that is not read anyway.

        Args:
            x: [P, hidden], normalised unless there is a norm.
            residual: [P, hidden]; None = zero.
            num_tokens: Of the first rows.
            norm: Of x; only if `takes_norm`.
        """
        return self.ranks.sum_(self._part(x, self.ranks.once(residual), norm))

    def _part(self, x: torch.Tensor, residual: torch.Tensor | None, norm: RowNorm | None) -> torch.Tensor:
        """What this rank's part of the width gives."""
        if self.is_whole:
            return whole_mlp(x, self.gate, self.up, self.down, self.activation, norm=norm, add=residual)
        if self.gate is None:
            return linear(linear(x, self.up, activation=self.activation, norm=norm), self.down, add=residual)
        return linear(gated_linear(x, self.gate, self.up, self.activation, norm=norm), self.down, add=residual)


@dataclass(frozen=True, slots=True, eq=False)
class ClampedMlp:
    """down(g * sigmoid(alpha * g) * (u + 1)), g = gate(x) up to the limit, u = up(x) within plus or minus the limit (gpt-oss)."""

    gate: LinearWeight
    up: LinearWeight
    down: LinearWeight
    alpha: float
    limit: float

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """See `Mlp`."""
        gate = linear(x, self.gate).float().clamp_(max=self.limit)
        up = linear(x, self.up).float().clamp_(-self.limit, self.limit)
        # A softmax of two numbers is a sigmoid of their difference, and treats every element alike, as torch's sigmoid does not.
        scaled = gate * self.alpha
        share = torch.softmax(torch.stack((scaled, torch.zeros_like(scaled)), dim=-1), dim=-1)[..., 0]
        return linear(gate.mul_(share).mul_(up.add_(1.0)).to(x.dtype), self.down, add=residual)


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMlp:
    """Some experts' MLPs of each token, weighted and summed in the order of the experts' numbers.

    What a token gets depends on it alone: its experts are chosen by its own scores, and each row of a product by its own row. On a CPU only
    the chosen experts are computed, one after the other. On a device the host would have to wait to learn which were chosen. So tokens are
    sorted by expert there and the device finds the borders, where it can (`group_mlps`); where it cannot, every expert computes every
    token: no dearer for few tokens, which need most experts' weights anyway, and count / per_token times the work for many.

    Attributes:
        router: Chooses them.
        experts: All of them, from `group_experts`.
        shared: An MLP that computes every token; None = none.
        shared_gate: [1, hidden], what that MLP's output is scaled by, through a sigmoid; None = not.
        ranks: Have the other parts of every expert's width; the result is summed over them.
    """

    router: Router
    experts: tuple[Mlp | ClampedMlp, ...] | GroupedMlps
    shared: Mlp | None
    shared_gate: LinearWeight | None
    ranks: RankGroup = ALONE
    takes_norm: ClassVar[bool] = False

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, num_tokens: int | None = None, norm: RowNorm | None = None
    ) -> torch.Tensor:
        """residual + experts(x), both [P, hidden]; the experts alone without a residual.

        Args:
            x: [P, hidden].
            residual: [P, hidden]; None = zero.
            num_tokens: How many of the first rows are tokens; None = all. On a CPU the others, padding, are sent to no expert: each would
                have its weights read for nothing.
            norm: See `Mlp`.
        """
        assert norm is None, "hidden states go into several products"
        weights, chosen = self.router.forward(x)
        if isinstance(self.experts, GroupedMlps):
            total = grouped_mlp(x, weights, chosen, self.experts)
        elif x.device.type == "cpu":
            total = _sum_chosen(x, weights[:num_tokens], chosen[:num_tokens], self.experts)
        else:
            total = _sum_all(x, weights, chosen, self.experts)
        if self.shared is not None:
            shared = self.shared.forward(x, None).float()
            total += shared if self.shared_gate is None else shared * linear(x, self.shared_gate, activation="sigmoid").float()
        result, addend = total.to(x.dtype), self.ranks.once(residual)
        return self.ranks.sum_(result if addend is None else result + addend)


def _sum_chosen(x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, experts: Sequence[Mlp | ClampedMlp]) -> torch.Tensor:
    """The sum of what each token's experts make of it, weighted, one expert after the other. Waits for the device to tell which were chosen.

    Args:
        x: [P, hidden].
        weights: [P or fewer, per_token] float32, of the chosen experts; other rows get zero.
        chosen: [P or fewer, per_token] int64, their numbers.
        experts: All of them.

    Returns:
        [P, hidden] float32.
    """
    shares, is_chosen = _shares(weights, chosen, len(experts))
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for index in is_chosen.any(dim=0).nonzero().flatten().tolist():
        rows = is_chosen[:, index].nonzero().flatten()
        padded = F.pad(rows, (0, padded_count(len(rows), x.dtype, x.device) - len(rows)))
        answer = experts[index].forward(x.index_select(0, padded), None)[: len(rows)].float()
        total.index_add_(0, rows, answer * shares[rows, index, None])
    return total


def _sum_all(x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, experts: Sequence[Mlp | ClampedMlp]) -> torch.Tensor:
    """As `_sum_chosen`, every expert of every token, one expert after the other; waits for nothing."""
    shares, is_chosen = _shares(weights, chosen, len(experts))
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for index, expert in enumerate(experts):
        answer = expert.forward(x, None).float() * shares[:, index, None]
        # Filled, not left to a share of zero: what was not chosen counts for nothing even where it is not finite.
        total += answer.masked_fill_(~is_chosen[:, index, None], 0.0)
    return total


def _shares(weights: torch.Tensor, chosen: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[P, num_experts] float32, a token's weight of each expert, 0 where it is not chosen; and as bool where it is."""
    shares = weights.new_zeros((len(weights), num_experts))
    return shares.scatter_(1, chosen, weights), torch.zeros_like(shares, dtype=torch.bool).scatter_(1, chosen, True)


def group_experts(experts: Sequence[Mlp] | Sequence[ClampedMlp]) -> tuple[Mlp | ClampedMlp, ...] | GroupedMlps:
    """Experts as `ExpertMlp` wants them: together where the device takes them so, else as they are.

    Together they are a copy: let go of those given.
    """
    first = experts[0]
    into = [[one for one in (expert.gate, expert.up) if one is not None] for expert in experts]
    if any(len(pair) < 2 for pair in into):
        return tuple(experts)
    activation: Activation = first.activation if isinstance(first, Mlp) else "none"
    clamp = None if isinstance(first, Mlp) else Clamp(first.alpha, first.limit)
    together = group_mlps(into, [expert.down for expert in experts], activation, clamp)
    return tuple(experts) if together is None else together
