"""The library's own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch

from compute_svc.kernels.native import DTYPES, NativeLibrary
from compute_svc.kernels.quantise_rows.rows import Norm, QuantisedRows

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = (_POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER, ctypes.c_double, _POINTER, _POINTER, _NUMBER)


@cache
def _quantise_rows(library: NativeLibrary) -> Callable[..., None]:
    return library.function("triserve_quantise_rows", _ARGUMENTS)


def quantise_rows(x: torch.Tensor, norm: Norm | None, library: NativeLibrary) -> QuantisedRows:
    """See the public functions."""
    x = x.contiguous()
    num_rows, num_columns = x.shape
    codes = torch.empty((num_rows, num_columns), dtype=torch.int8)
    scales = torch.empty((num_rows,), dtype=torch.float32)
    weight, eps = norm if norm is not None else (None, 0.0)
    _quantise_rows(library)(
        x.data_ptr(),
        DTYPES[x.dtype],
        num_rows,
        num_columns,
        None if weight is None else weight.data_ptr(),
        eps,
        codes.data_ptr(),
        scales.data_ptr(),
        torch.get_num_threads(),
    )
    return QuantisedRows(codes, scales)
