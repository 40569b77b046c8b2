"""One operation after the other."""

from __future__ import annotations

import torch

from compute_svc.kernels.kv_write import kv_write
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.rotary import rotary_


def place_heads(
    heads: torch.Tensor, kv: KvLayer, slots: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int, rotary_dims: int
) -> None:
    """See the public function."""
    if rotary_dims:
        num_kv_heads = (heads.shape[1] - num_heads) // 2
        rotary_(heads[:, : num_heads + num_kv_heads, :rotary_dims], cos, sin)
    kv_write(kv, slots, heads[: len(slots), num_heads:])
