"""Rows of activations to int8, one scale a row."""

from __future__ import annotations

import torch

from compute_svc.kernels.native import native_library
from compute_svc.kernels.quantise_rows import aten, native
from compute_svc.kernels.quantise_rows.rows import QuantisedRows

__all__ = ["QuantisedRows", "quantise_rows"]


def quantise_rows(x: torch.Tensor) -> QuantisedRows:
    """Quantises each row by itself, symmetrically: scale = max |x| / 127, code = x / scale rounded half to even, both in float32.

    A row of zeros has scale 0 and codes 0. A row that is not finite has codes 0 and a scale that is not finite, so that what is computed of
    it is not a number.

    Args:
        x: [M, K], float32 or bfloat16.
    """
    library = native_library() if x.device.type == "cpu" else None
    return aten.quantise_rows(x) if library is None else native.quantise_rows(x, library)
