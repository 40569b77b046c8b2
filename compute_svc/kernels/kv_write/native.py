"""The library's own, for codes of int8: rows are encoded where they are stored, in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch

from compute_svc.kernels.native import DTYPES, NativeLibrary
from compute_svc.kernels.paged_kv.kv_layer import KvLayer

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = (*(_POINTER, _NUMBER, _NUMBER, _NUMBER, _NUMBER, _NUMBER), *(_POINTER,) * 3, *(_NUMBER,) * 4, _POINTER)
_NONE_IS_WRONG = -(1 << 63)


@cache
def _kv_write(library: NativeLibrary) -> Callable[..., None]:
    return library.function("triserve_kv_write_int8", _ARGUMENTS)


def kv_write(kv: KvLayer, slots: torch.Tensor, rows: torch.Tensor, library: NativeLibrary) -> None:
    """See the public function; kv has codes of int8, on a CPU."""
    assert kv.scales is not None, "codes have scales"
    if rows.stride(2) != 1:
        rows = rows.contiguous()
    slots = slots.contiguous()
    num_tokens, num_heads, width = rows.shape
    num_slots = kv.data.shape[1] * kv.data.shape[2]
    wrong = ctypes.c_int64(_NONE_IS_WRONG)
    _kv_write(library)(
        rows.data_ptr(),
        DTYPES[rows.dtype],
        rows.stride(0),
        rows.stride(1),
        num_tokens,
        num_heads,
        slots.data_ptr(),
        kv.data.data_ptr(),
        kv.scales.data_ptr(),
        num_slots,
        width,
        kv.group,
        torch.get_num_threads(),
        ctypes.addressof(wrong),
    )
    if wrong.value != _NONE_IS_WRONG:
        raise IndexError(f"slot {wrong.value} is not in the store, which has {num_slots}")
