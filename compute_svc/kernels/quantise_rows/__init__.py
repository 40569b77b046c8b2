"""Rows of activations to int8, one scale a row."""

from __future__ import annotations

import torch

from compute_svc.kernels.native import native_library
from compute_svc.kernels.quantise_rows import aten, native
from compute_svc.kernels.quantise_rows.rows import Norm, QuantisedRows

__all__ = ["Norm", "QuantisedRows", "quantise_rows", "rms_norm_quantise"]


def quantise_rows(x: torch.Tensor) -> QuantisedRows:
    """Quantises each row by itself, symmetrically: scale = max |x| / 127, code = x / scale rounded half to even, both in float32.

    A row of zeros has scale 0 and codes 0. A row that is not finite has codes 0 and a scale that is not finite, so that what is computed of
    it is not a number.

    Args:
        x: [M, K], float32 or bfloat16.
    """
    library = native_library() if x.device.type == "cpu" else None
    return aten.quantise_rows(x) if library is None else native.quantise_rows(x, None, library)


def rms_norm_quantise(x: torch.Tensor, norm: Norm) -> QuantisedRows:
    """Normalises each row and quantises it as `quantise_rows` does, without rounding to x's dtype in between.

    The mean square is of float64, so that every implementation has the same bits; `rms_norm` sums in float32 and may differ by some units of
    the last place.

    Args:
        x: [M, K], float32 or bfloat16.
        norm: Of K numbers.
    """
    library = native_library() if x.device.type == "cpu" else None
    return aten.quantise_rows(aten.normalise(x, norm)) if library is None else native.quantise_rows(x, norm, library)
