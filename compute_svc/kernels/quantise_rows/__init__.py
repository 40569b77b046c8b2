"""Rows of activations to int8, with a scale for each row or each group of its inputs."""

from __future__ import annotations

import torch

from compute_svc.kernels.native import native_library
from compute_svc.kernels.quantise_rows import aten, native
from compute_svc.kernels.quantise_rows.rows import Norm, QuantisedRows

__all__ = ["Norm", "QuantisedRows", "quantise_rows", "rms_norm_quantise"]


def quantise_rows(x: torch.Tensor, group: int | None = None) -> QuantisedRows:
    """Quantises each row, or each group of it, by itself: scale = max |x| / 127, code = x / scale rounded half to even, both in float32.

    A group of zeros has scale 0 and codes 0. A group that is not finite has codes 0 and a scale that is not finite, so that what is computed
    of it is not a number.

    Args:
        x: [M, K], float32 or bfloat16; K at least 1.
        group: Inputs that share a scale; the last group may have fewer. None = all of a row.
    """
    library = native_library() if x.device.type == "cpu" else None
    return aten.quantise_rows(x, group) if library is None else native.quantise_rows(x, group, None, library)


def rms_norm_quantise(x: torch.Tensor, norm: Norm, group: int | None = None) -> QuantisedRows:
    """Normalises each row and then quantises it as `quantise_rows` does, without rounding to x's dtype in between.

    The mean square is of float64, so that every implementation has the same bits; `rms_norm` sums in float32 and may differ by some units of
    the last place.

    Args:
        x: [M, K], float32 or bfloat16.
        norm: Of K numbers.
        group: Inputs that share a scale; None = all of a row.
    """
    library = native_library() if x.device.type == "cpu" else None
    return aten.quantise_rows(aten.normalise(x, norm), group) if library is None else native.quantise_rows(x, group, norm, library)
