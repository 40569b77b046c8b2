"""Drawing a token of each row by the specification of the draw: greedily or with noise, behind top_k, top_p and min_p, without a sort."""

from __future__ import annotations

from typing import NamedTuple

import torch

from compute_svc.kernels.backend import backend_for

DRAWN = 0
BROKEN = 1
UNDECIDED = 2
"""What flags say of a row: a NaN or an infinite logit is in it, or all are -inf; top_k and top_p could not be decided, and its token is any id."""


class DrawNumbers(NamedTuple):
    """What the draws of some rows depend on, on the device of their logits: [rows] each, contiguous.

    Attributes:
        seeds: int64, the bits of unsigned ones.
        positions: int64, indices of the tokens to be drawn in their answers.
        temperatures: float64; 0 = the largest logit, the lowest id among equals, and nothing else applies.
        min_ps: float64; None = no row has min_p.
        top_ks: int64, 0 = all; None = no row has top_k or top_p.
        top_ps: float64, 1 = all; None where top_ks is.
    """

    seeds: torch.Tensor
    positions: torch.Tensor
    temperatures: torch.Tensor
    min_ps: torch.Tensor | None = None
    top_ks: torch.Tensor | None = None
    top_ps: torch.Tensor | None = None


def has_kernel(device_type: str) -> bool:
    """Whether the following can be called for tensors of a device."""
    return backend_for("draw", device_type, has_triton=True) == "triton"


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest id of each row, the lowest among equals, and its logit.

    Args:
        logits: [rows, width], floating, ids next to each other.

    Returns:
        [rows, 1] int64 and float32. A logit is infinite where the row has a NaN; the id exists all the same.
    """
    from compute_svc.kernels.draw import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    return triton_kernel.likeliest(logits)


def draw_into(
    logits: torch.Tensor,
    numbers: DrawNumbers | None,
    out_tokens: torch.Tensor,
    out_flags: torch.Tensor | None,
    out_best: torch.Tensor | None = None,
) -> None:
    """Draws a token of each row; greedy rows and others may lie side by side.

    Waits for nothing and depends on no value on the host, so that a CUDA graph can hold it.

    Args:
        logits: [rows, width], floating, ids next to each other.
        numbers: Of the rows; None = all are greedy.
        out_tokens: [rows] int64, contiguous.
        out_flags: [rows] int64, contiguous, or not wanted.
        out_best: [rows] float32, contiguous, or not wanted.

    Effects: writes `out_tokens`, of broken rows an id that exists; `out_flags`, `DRAWN`, `BROKEN` or `UNDECIDED`; and `out_best`, the largest logits, which
        are infinite where a row has a NaN.
    """
    from compute_svc.kernels.draw import triton_kernel  # noqa: PLC0415 - likewise

    triton_kernel.draw_into(logits, numbers, out_tokens, out_flags, out_best)
