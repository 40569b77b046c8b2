"""The library's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from compute_svc.kernels.native import DTYPES, NativeLibrary
from compute_svc.kernels.native.library import QUANTISE_ROWS
from compute_svc.kernels.quantise_rows.rows import Norm, QuantisedRows


@cache
def _quantise_rows(library: NativeLibrary) -> Callable[..., None]:
    return library.function("triserve_quantise_rows", QUANTISE_ROWS)


def quantise_rows(x: torch.Tensor, group: int | None, norm: Norm | None, library: NativeLibrary) -> QuantisedRows:
    """See the public functions."""
    x = x.contiguous()
    num_rows, num_columns = x.shape
    codes = torch.empty((num_rows, num_columns), dtype=torch.int8)
    length = num_columns if group is None else min(group, num_columns)
    scales = torch.empty((num_rows, -(-num_columns // length)), dtype=torch.float32)
    weight, eps = norm if norm is not None else (None, 0.0)
    _quantise_rows(library)(
        x.data_ptr(),
        DTYPES[x.dtype],
        num_rows,
        num_columns,
        length,
        None if weight is None else weight.data_ptr(),
        eps,
        codes.data_ptr(),
        scales.data_ptr(),
        torch.get_num_threads(),
    )
    return QuantisedRows(codes, scales)
