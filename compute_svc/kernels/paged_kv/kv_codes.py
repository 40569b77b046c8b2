"""Numbers of keys and values as codes in groups along a head, each group with a scale: number = code * scale.

Symmetric: a group's scale is what makes its largest magnitude the largest code, 127 of int8 or 448 of float8_e4m3fn, as the smallest float16
that is no less. So no code is cut off, and an int8 code is off by half a scale at most. Codes are rounded half to even.

- A scale too small for float16 is its smallest, 2^-24: numbers below half of that become zero.
- A scale too large for it is its largest, 65504, and numbers beyond 127 (448) times that, 8.3e6 (2.9e7), become that.
- A group with a number that is not finite has the scale NaN and zeros for codes: all of it is read as NaN, so that what looks for numbers that
  are not finite may look at scales alone.

A product of code and scale is exact in float32. What a token's row becomes depends on nothing but the row, so that it has the same bytes in
whatever batch it is written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from compute_svc.kernels.exact_products import divided

_LARGEST_CODES = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_LARGEST_SCALE = 65504.0

CODE_DTYPES = frozenset(_LARGEST_CODES)
"""Dtypes that codes may have."""


def encode(rows: torch.Tensor, group: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [..., D] of a dtype, contiguous, and their scales [..., ceil(D / group)] float16.

    Args:
        rows: [..., D], floating, any strides.
        group: From 1 to D; the last group has what is left.
        dtype: One of CODE_DTYPES.
    """
    width, largest = rows.shape[-1], _LARGEST_CODES[dtype]
    numbers = _in_groups(rows.float(), group)
    scales = _scales(divided(numbers.abs().amax(dim=-1), largest))
    codes = numbers / scales[..., None]
    if dtype == torch.int8:
        codes = codes.round_()
    # Infinite or not a number where the scale is zero or not a number itself.
    codes = codes.nan_to_num_(0.0, 0.0, 0.0).clamp_(-largest, largest).to(dtype)
    return codes.flatten(-2)[..., :width].contiguous(), scales


def _scales(exact: torch.Tensor) -> torch.Tensor:
    """Float16 scales no less than `exact`, float32, if float16 reaches so far; NaN where those are not finite."""
    rounded = exact.half()
    # Positive float16 numbers are ordered as their bits are: the next one is one more.
    bits = rounded.view(torch.int16) + (rounded < exact)
    # What is added is zero, or not a number where `exact` is not finite.
    return bits.view(torch.float16).clamp_(max=_LARGEST_SCALE).add_(exact - exact)


def decode(codes: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """[..., D] float32, new memory, contiguous: what codes [..., D] with scales [..., ceil(D / group)] stand for, exactly."""
    width = codes.shape[-1]
    return _in_groups(codes.float(), group).mul_(scales[..., None]).flatten(-2)[..., :width].contiguous()


def _in_groups(numbers: torch.Tensor, group: int) -> torch.Tensor:
    """[..., ceil(D / group), group]: numbers [..., D], and zeros where the last group is not full."""
    missing = -numbers.shape[-1] % group
    if missing:
        numbers = F.pad(numbers, (0, missing))
    return numbers.reshape(*numbers.shape[:-1], numbers.shape[-1] // group, group)
