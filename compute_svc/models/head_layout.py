"""Where the rows of stored projections go, so that attention finds queries, keys and values as it computes with them.

An order says which stored row, or column, comes where. Heads are as wide as `ModelConfig.kv_head_dim` there: what a stored head lacks is -1 in an order
and filled with zeros, which change no product. Scores do not change
when the dimensions of queries and keys change places alike; so neighbours that turn together are laid half the turning dimensions apart, where
the rotary kernel expects them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from compute_svc.models.config import LatentAttention, ModelConfig, Rope
from compute_svc.models.weight_names import WeightNames


def qkv_order(config: ModelConfig, names: WeightNames, rope: Rope | None) -> torch.Tensor:
    """[outputs] int64: which output of the stored projections goes where: queries, keys, values, each head whole."""
    heads = torch.arange(config.num_heads + 2 * config.num_kv_heads)
    if len(names.qkv) == 1 and names.qkv_layout == "groups":
        grouped = heads.view(config.num_kv_heads, -1)
        heads = torch.cat((grouped[:, :-2].flatten(), grouped[:, -2], grouped[:, -1]))
    order = heads[:, None] * config.head_dim + torch.arange(config.head_dim)
    if rope is not None:
        turned = order[: config.num_heads + config.num_kv_heads, : rope.dims]
        turned.copy_(turned[:, turning_order(rope)])
    return order.flatten()


def turning_order(rope: Rope) -> torch.Tensor:
    """[rope.dims] int64: which of the stored turning dimensions goes where."""
    order = torch.arange(rope.dims)
    return torch.cat((order[0::2], order[1::2])) if rope.interleaved else order


def padded_heads(order: torch.Tensor, head_dim: int, width: int) -> torch.Tensor:
    """[heads * width] int64 for an order [heads * head_dim] of heads: -1, which stands for zeros, where a head lacks something."""
    return _pad(order.view(-1, head_dim), behind=width - head_dim).flatten()


def latent_queries(latent: LatentAttention, rope: Rope, num_heads: int, width: int) -> torch.Tensor:
    """[heads * width] int64, the turning dimensions first, for stored heads whose turning dimensions come last."""
    head_dim = latent.plain_dims + rope.dims
    turning = latent.plain_dims + turning_order(rope)
    within = _pad(torch.cat((turning, torch.arange(latent.plain_dims)))[None], behind=width - head_dim)
    return _of_heads(within, num_heads, head_dim)


def latent_keys_and_values(latent: LatentAttention, rope: Rope, value_dim: int, num_heads: int, width: int) -> torch.Tensor:
    """[2 * heads * width] int64: key heads with room for what turns first, then value heads; stored: each head's key, then its value."""
    plain = latent.plain_dims
    keys = _pad(torch.arange(plain)[None], before=rope.dims, behind=width - rope.dims - plain)
    values = _pad(plain + torch.arange(value_dim)[None], behind=width - value_dim)
    return torch.cat([_of_heads(part, num_heads, plain + value_dim) for part in (keys, values)])


def _of_heads(within: torch.Tensor, num_heads: int, head_dim: int) -> torch.Tensor:
    """The order within one head, [1, width], for all of them."""
    firsts = head_dim * torch.arange(num_heads)[:, None]
    return torch.where(within < 0, within, firsts + within).flatten()


def _pad(order: torch.Tensor, *, before: int = 0, behind: int = 0) -> torch.Tensor:
    return F.pad(order, (before, behind), value=-1)
