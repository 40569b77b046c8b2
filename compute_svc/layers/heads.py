"""Hidden states to query, key and value heads that have not turned yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from compute_svc.kernels.linear import LinearWeight, RowNorm, linear, takes_norm
from compute_svc.kernels.place_heads import QueryKeyNorm, is_one_kernel
from compute_svc.kernels.rms_norm import rms_norm
from compute_svc.layers.norm import Norm


@dataclass(frozen=True, slots=True, eq=False)
class HeadNorm:
    """Normalises queries and keys by their root mean square.

    Attributes:
        weight: [num_heads + num_kv_heads, D] of heads that may be wider than D; what is more is zero and counts for nothing.
        eps: Added to mean squares.
        together: The first so many heads are normalised as one vector and the others as another; None = each head by itself.
    """

    weight: torch.Tensor
    eps: float
    together: int | None = None

    def apply_(self, heads: torch.Tensor) -> None:
        """Effects: writes heads, [P, num_heads + num_kv_heads, D or more]."""
        heads = heads[..., : self.weight.shape[1]]
        if self.together is None:
            rms_norm(heads, self.weight, self.eps, out=heads)
            return
        for span in (slice(self.together), slice(self.together, None)):
            part = heads[:, span]
            part.copy_(rms_norm(part.flatten(1), self.weight[span].flatten(), self.eps).view(part.shape))


@dataclass(frozen=True, slots=True, eq=False)
class ProjectedHeads:
    """One product gives all heads.

    Attributes:
        qkv: Query, key and value heads of a hidden state, in this order.
        norm: Of queries and keys; None = none.
        limit: Queries, keys and values are clamped to plus or minus this, behind the norm; None = not.
        num_rotated: How many of the heads are queries and keys.
        head_dim: W, width of a head.
        placed_norm: The norm, where `place_heads` normalises in its kernel and `forward` does not; None = `forward` does, or there is none.
    """

    qkv: LinearWeight
    norm: HeadNorm | None
    limit: float | None
    num_rotated: int
    head_dim: int
    placed_norm: QueryKeyNorm | None = field(init=False)

    def __post_init__(self) -> None:
        """Sees who normalises."""
        norm = self.norm
        is_placed = norm is not None and norm.together is None and self.limit is None and is_one_kernel(norm.weight.device.type)
        object.__setattr__(
            self, "placed_norm", QueryKeyNorm(norm.weight.contiguous(), norm.eps) if norm is not None and is_placed else None
        )

    @property
    def takes_norm(self) -> bool:
        """Whether `forward` takes a norm."""
        return takes_norm(self.qkv)

    def forward(self, x: torch.Tensor, norm: RowNorm | None = None) -> torch.Tensor:
        """[P, num_heads + 2 * num_kv_heads, W] for [P, hidden], new memory; the norm left out if it is `placed_norm`.

        Args:
            x: Hidden states, normalised unless there is a norm.
            norm: Of them; only if `takes_norm`.
        """
        heads = linear(x, self.qkv, norm=norm).view(x.shape[0], -1, self.head_dim)
        if self.norm is not None and self.placed_norm is None:
            self.norm.apply_(heads[:, : self.num_rotated])
        if self.limit is not None:
            heads.clamp_(-self.limit, self.limit)
        return heads


@dataclass(frozen=True, slots=True, eq=False)
class LatentHeads:
    """Keys and values of all heads from one latent vector of a token (MLA, arXiv 2405.04434), made anew for every head.

    Every head has keys and values of its own in the KV; the latent, which would be many times smaller there, is not kept.

    Attributes:
        query_down: Hidden state to the latent of queries; None = queries are made from the hidden state.
        query_norm: Of that latent; None with query_down.
        query: To query heads, the dimensions that turn first.
        latent: Hidden state to the latent of keys and values, and behind it the dimensions that turn of every head's key.
        latent_norm: Of the latent.
        key_value: The latent to key heads, with room for what turns first, then value heads.
        rotary_dims: How many dimensions turn.
        num_heads: Query heads, and as many key and value heads.
        head_dim: W, width of a head.
    """

    query_down: LinearWeight | None
    query_norm: Norm | None
    query: LinearWeight
    latent: LinearWeight
    latent_norm: Norm
    key_value: LinearWeight
    rotary_dims: int
    num_heads: int
    head_dim: int

    takes_norm: ClassVar[bool] = False
    placed_norm: ClassVar[None] = None

    def forward(self, x: torch.Tensor, norm: RowNorm | None = None) -> torch.Tensor:
        """[P, 3 * num_heads, W] for [P, hidden], new memory. See `ProjectedHeads`."""
        assert norm is None, "hidden states go into two products"
        asked = x
        if self.query_down is not None:
            assert self.query_norm is not None, "the latent of queries is normalised"
            asked = self.query_norm.forward(linear(x, self.query_down))
        rank = self.key_value.in_features
        down = linear(x, self.latent)  # [P, rank + rotary_dims]
        latent, turning = down[:, :rank].contiguous(), down[:, rank:]
        heads = torch.cat((linear(asked, self.query), linear(self.latent_norm.forward(latent), self.key_value)), dim=1)
        heads = heads.view(x.shape[0], -1, self.head_dim)
        heads[:, self.num_heads : 2 * self.num_heads, : self.rotary_dims] = turning[:, None]
        return heads
