"""Where the rows of stored projections go, so that attention finds queries, keys and values as it computes with them.

Heads are as wide as `ModelConfig.kv_head_dim` there: what a stored head lacks is filled with zeros, which change no product. Scores do not change
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


def pad_heads(rows: torch.Tensor, head_dim: int, width: int) -> torch.Tensor:
    """[heads * width, ...] for the rows [heads * head_dim, ...] of heads."""
    if head_dim == width:
        return rows
    heads = rows.view(-1, head_dim, rows[0].numel())
    return F.pad(heads, (0, 0, 0, width - head_dim)).view(-1, *rows.shape[1:])


def pad_head_columns(weight: torch.Tensor, head_dim: int, width: int) -> torch.Tensor:
    """[outputs, heads * width] for [outputs, heads * head_dim]."""
    if head_dim == width:
        return weight
    return F.pad(weight.view(len(weight), -1, head_dim), (0, width - head_dim)).view(len(weight), -1)


def latent_queries(weight: torch.Tensor, latent: LatentAttention, rope: Rope, width: int) -> torch.Tensor:
    """[heads * width, inputs], the turning dimensions first, for stored heads whose turning dimensions come last."""
    heads = weight.view(-1, latent.plain_dims + rope.dims, weight.shape[1])
    plain, turning = heads[:, : latent.plain_dims], heads[:, latent.plain_dims :]
    return pad_heads(torch.cat((turning[:, turning_order(rope)], plain), dim=1).flatten(0, 1), heads.shape[1], width)


def latent_keys_and_values(weight: torch.Tensor, latent: LatentAttention, rope: Rope, value_dim: int, width: int) -> torch.Tensor:
    """[2 * heads * width, rank]: key heads with room for what turns first, then value heads; stored: each head's key, then its value."""
    heads = weight.view(-1, latent.plain_dims + value_dim, weight.shape[1])
    keys, values = heads[:, : latent.plain_dims], heads[:, latent.plain_dims :]
    padded = [F.pad(keys, (0, 0, rope.dims, width - rope.dims - latent.plain_dims)), F.pad(values, (0, 0, 0, width - value_dim))]
    return torch.cat(padded).flatten(0, 1)
