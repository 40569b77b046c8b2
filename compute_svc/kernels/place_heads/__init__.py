"""Rotating a step's queries and keys and storing its keys and values, before attention."""

from __future__ import annotations

from typing import NamedTuple

import torch

from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.native import heads as native
from compute_svc.kernels.native import native_library
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.place_heads import aten
from compute_svc.kernels.rms_norm import rms_norm


class QueryKeyNorm(NamedTuple):
    """Normalisation of each query and key head by its root mean square.

    Attributes:
        weight: [num_heads + kv_heads, D], contiguous, of heads that may be wider than D; what is more is zero and counts for nothing.
        eps: Added to mean squares.
    """

    weight: torch.Tensor
    eps: float


def place_heads(
    heads: torch.Tensor,
    kv: KvLayer,
    slots: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    num_heads: int,
    rotary_dims: int,
    norm: QueryKeyNorm | None = None,
) -> None:
    """`rotary_` of query and key heads, then `kv_write` of key and value heads; the same bits whichever way.

    Args:
        heads: [P, num_heads + 2 * kv_heads, W], floating: queries, keys, values. Rows from T on are padding.
        kv: One layer.
        slots: [T] int64, page * page_size + offset, no two alike. Where this `is_one_kernel`, below 0 = a row of padding, left alone.
        cos: [P, 1, rotary_dims] float32, as `rotary_` has it.
        sin: [P, 1, rotary_dims] float32.
        num_heads: Query heads.
        rotary_dims: How many of a head's first dimensions are rotated; 0 = none, and cos and sin mean nothing.
        norm: Of query and key heads before; None = none.

    Effects: writes the queries in heads, and kv. What is in the key heads and in rows of padding afterwards means nothing.

    Raises:
        IndexError: On a CPU, a slot is not in the store; a device stops at it; where this `is_one_kernel`, it does not see one.
    """
    if heads.stride(2) == 1 and is_one_kernel(heads.device.type):
        from compute_svc.kernels.place_heads import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        triton_kernel.place_heads(heads, kv, slots, cos, sin, num_heads, rotary_dims, norm)
        return
    if norm is not None:
        compared = heads[:, : norm.weight.shape[0], : norm.weight.shape[1]]
        rms_norm(compared, norm.weight, norm.eps, out=compared)
    is_covered = heads.device.type == "cpu" and kv.scales is None and heads.is_contiguous()
    library = native_library() if is_covered else None
    if library is None:
        aten.place_heads(heads, kv, slots, cos, sin, num_heads, rotary_dims)
    else:
        native.place_heads(library, heads, kv, slots, cos, sin, num_heads, rotary_dims)


def is_one_kernel(device_type: str) -> bool:
    """Whether `place_heads` computes in one kernel on a device. It leaves rows alone whose slot is below 0, and a norm costs it nothing."""
    return backend_for("place_heads", device_type, has_triton=True) == "triton"
