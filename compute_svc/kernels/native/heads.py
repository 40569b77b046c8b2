"""Queries and keys rotated, keys and values stored, in one pass over each token's heads. Padding rows stay as they are."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch

from compute_svc.kernels.native.library import DTYPES, NativeLibrary
from compute_svc.kernels.paged_kv.kv_layer import KvLayer

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


@cache
def _place_heads(library: NativeLibrary) -> Callable[..., None]:
    heads, angles, store = (_POINTER, *(_NUMBER,) * 6), (_POINTER, _POINTER, _NUMBER, _NUMBER), (_POINTER, _POINTER, _NUMBER, _NUMBER)
    return library.function("triserve_place_heads", (*heads, *angles, *store, _NUMBER, _POINTER))


def place_heads(
    library: NativeLibrary,
    heads: torch.Tensor,
    kv: KvLayer,
    slots: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    num_heads: int,
    rotary_dims: int,
) -> None:
    """See kernels/place_heads, for stores of numbers and contiguous heads."""
    data, wrong = kv.data, _NUMBER()
    num_kv_heads, num_pages, page_size, head_dim = data.shape
    assert cos.stride() == sin.stride() and data.is_contiguous() and slots.is_contiguous(), "as they were made"
    _place_heads(library)(
        *(heads.data_ptr(), DTYPES[heads.dtype], len(slots), heads.stride(0), num_heads, num_kv_heads // 2, head_dim),
        *(cos.data_ptr(), sin.data_ptr(), rotary_dims, cos.stride(0)),
        *(slots.data_ptr(), data.data_ptr(), DTYPES[data.dtype], num_pages * page_size),
        *(torch.get_num_threads(), ctypes.addressof(wrong)),
    )
    if wrong.value >= 0:
        raise IndexError(f"slot {int(slots[wrong.value])} of token {wrong.value} is not in the store, which has {num_pages * page_size}")
