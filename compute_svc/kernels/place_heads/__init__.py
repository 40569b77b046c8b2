"""Rotating a step's queries and keys and storing its keys and values, before attention."""

from __future__ import annotations

import torch

from compute_svc.kernels.kv_layer import KvLayer
from compute_svc.kernels.native import heads as native
from compute_svc.kernels.native import native_library
from compute_svc.kernels.place_heads import aten


def place_heads(
    heads: torch.Tensor, kv: KvLayer, slots: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, num_heads: int, rotary_dims: int
) -> None:
    """`rotary_` of query and key heads, then `kv_write` of key and value heads; the same bits whichever way.

    Args:
        heads: [P, num_heads + 2 * kv_heads, W], floating: queries, keys, values. Rows from T on are padding.
        kv: One layer.
        slots: [T] int64, page * page_size + offset, no two alike.
        cos: [P, 1, rotary_dims] float32, as `rotary_` has it.
        sin: [P, 1, rotary_dims] float32.
        num_heads: Query heads.
        rotary_dims: How many of a head's first dimensions are rotated; 0 = none, and cos and sin mean nothing.

    Effects: writes heads and kv.

    Raises:
        IndexError: On a CPU, a slot is not in the store; a device stops at it.
    """
    is_covered = heads.device.type == "cpu" and kv.scales is None and heads.is_contiguous()
    library = native_library() if is_covered else None
    if library is None:
        aten.place_heads(heads, kv, slots, cos, sin, num_heads, rotary_dims)
    else:
        native.place_heads(library, heads, kv, slots, cos, sin, num_heads, rotary_dims)
