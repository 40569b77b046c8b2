"""Rows of activations to int8, with a scale for each row or each group of its inputs."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation, activate
from compute_svc.kernels.backend import backend_for
from compute_svc.kernels.native import native_library
from compute_svc.kernels.quantise_rows import aten, native
from compute_svc.kernels.quantise_rows.rows import Norm, QuantisedRows

__all__ = ["Norm", "QuantisedRows", "quantise_gated", "quantise_rows", "rms_norm_quantise"]

# Of a row that a program of the Triton kernel holds in registers.
_MAX_COLUMNS = 32768


def quantise_rows(x: torch.Tensor, group: int | None = None) -> QuantisedRows:
    """Quantises each row, or each group of it, by itself: scale = max |x| / 127, code = x / scale rounded half to even, both in float32.

    A group of zeros has scale 0 and codes 0. A group that is not finite has codes 0 and a scale that is not finite, so that what is computed
    of it is not a number.

    Args:
        x: [M, K], float32 or bfloat16; K at least 1.
        group: Inputs that share a scale; the last group may have fewer. None = all of a row.
    """
    return _quantise(x, group, None)


def rms_norm_quantise(x: torch.Tensor, norm: Norm, group: int | None = None) -> QuantisedRows:
    """Normalises each row and then quantises it as `quantise_rows` does, without rounding to x's dtype in between.

    The mean square is of float64, so that every implementation has the same bits; `rms_norm` sums in float32 and may differ by some units of
    the last place.

    Args:
        x: [M, K], float32 or bfloat16.
        norm: Of K numbers.
        group: Inputs that share a scale; None = all of a row.
    """
    return _quantise(x, group, norm)


def quantise_gated(joined: torch.Tensor, activation: Activation) -> QuantisedRows:
    """Quantises activation(gate) * up as `quantise_rows` does, computed in float32 and not rounded before.

    Args:
        joined: [M, 2K], floating: gate, then up, as one product gives them.
        activation: Of the gate.

    Returns:
        M rows of K codes, each with one scale.
    """
    columns = joined.shape[1] // 2
    if _takes_triton(joined[:, :columns], None):
        from compute_svc.kernels.quantise_rows import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        return triton_kernel.quantise_gated(joined, activation)
    gate, up = joined.float().tensor_split(2, dim=1)
    return quantise_rows(activate(gate, activation) * up)


def _quantise(x: torch.Tensor, group: int | None, norm: Norm | None) -> QuantisedRows:
    library = native_library() if x.device.type == "cpu" else None
    if library is not None:
        return native.quantise_rows(x, group, norm, library)
    if _takes_triton(x, group):
        from compute_svc.kernels.quantise_rows import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

        return triton_kernel.quantise_rows(x, norm)
    return aten.quantise_rows(x if norm is None else aten.normalise(x, norm), group)


def _takes_triton(x: torch.Tensor, group: int | None) -> bool:
    """Whether the Triton kernel quantises x: rows with one scale each, not too long for a program."""
    columns = x.shape[1]
    is_covered = x.stride(1) == 1 and columns <= _MAX_COLUMNS and (group is None or group >= columns)
    return is_covered and backend_for("quantise_rows", x.device.type, has_triton=True) == "triton"
