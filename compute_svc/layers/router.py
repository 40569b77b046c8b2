"""Which experts compute a token, and how much each counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from compute_svc.kernels.linear import Activation, LinearWeight, linear

Scoring = Literal["softmax", "sigmoid", "softmax_of_chosen"]


class Routing(NamedTuple):
    """The chosen experts of each token: weights [P, per_token] float32, chosen [P, per_token] int64."""

    weights: torch.Tensor
    chosen: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class GroupLimit:
    """A token's experts come from some groups of experts alone.

    Attributes:
        count: Groups, of equal size, of neighbours.
        chosen: How many of them a token's experts may come from.
        best: A group is as good as the sum of its so many best experts.
    """

    count: int
    chosen: int
    best: int


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """Chooses experts by a token's own row alone.

    Attributes:
        weight: Scores of experts; computed in its dtype.
        per_token: How many compute a token.
        scoring: What becomes of scores: softmax or sigmoid over all experts, or a softmax over those that were chosen.
        normalise: The weights of a token's experts are scaled to sum to one.
        scale: What they are multiplied by then.
        correction: [experts] float32, added to scores to choose and not to weigh (DeepSeek-V3, arXiv 2412.19437); None = nothing.
        limit: None = a token's experts may be any.
    """

    weight: LinearWeight
    per_token: int
    scoring: Scoring = "softmax"
    normalise: bool = False
    scale: float = 1.0
    correction: torch.Tensor | None = None
    limit: GroupLimit | None = None

    def forward(self, x: torch.Tensor) -> Routing:
        """For [P, hidden]."""
        # A sigmoid inside the product: by itself it rounds the last elements of a vector otherwise.
        activation: Activation = "sigmoid" if self.scoring == "sigmoid" else "none"
        scores = linear(x.to(self.weight.data.dtype), self.weight, activation=activation).float()  # [P, experts]
        if self.scoring == "softmax":
            scores = torch.softmax(scores, dim=-1)
        wanted = scores if self.correction is None else scores + self.correction
        if self.limit is not None:
            wanted = _limited(wanted, self.limit)
        chosen = wanted.topk(self.per_token, dim=-1).indices
        weights = scores.gather(1, chosen)
        if self.scoring == "softmax_of_chosen":
            weights = torch.softmax(weights, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(weights if self.scale == 1.0 else weights * self.scale, chosen)


def _limited(wanted: torch.Tensor, limit: GroupLimit) -> torch.Tensor:
    """[P, experts]: -inf where an expert's group is none of the best."""
    grouped = wanted.view(len(wanted), limit.count, -1)
    of_group = grouped.topk(limit.best, dim=-1).values.sum(dim=-1)
    is_out = torch.ones_like(of_group, dtype=torch.bool).scatter_(1, of_group.topk(limit.chosen, dim=-1).indices, False)
    return grouped.masked_fill(is_out[:, :, None], -torch.inf).view_as(wanted)
