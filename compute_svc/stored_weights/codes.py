"""Numbers of a few bits: how they lie in bytes, and what they stand for."""

from __future__ import annotations

from typing import Literal

import torch

Code = Literal["int8", "uint8", "int4", "uint4", "int2", "uint2", "fp8"]
"""What a code is: an integer of so many bits, signed in two's complement or not, or a float8_e4m3fn."""

BITS: dict[Code, int] = {"int8": 8, "uint8": 8, "int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "fp8": 8}

# QLoRA (arXiv 2305.14314), appendix E: quantiles of the normal distribution, scaled to [-1, 1].
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def pack_codes(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers of a few bits, several in a byte.

    Args:
        values: [N, K] of an integer dtype; the low `bits` of each count.
        bits: 8, 4 or 2.

    Returns:
        [N, ceil(K * bits / 8)] uint8; the first of those in a byte has its lowest bits. What is left of the last byte is zero.
    """
    if bits == 8:
        return values.to(torch.uint8)
    each = 8 // bits
    padded = torch.nn.functional.pad(values & ((1 << bits) - 1), (0, -values.shape[1] % each)).to(torch.uint8)
    lanes = padded.view(len(values), -1, each)
    packed = lanes[..., 0].clone()
    for lane in range(1, each):
        packed |= lanes[..., lane] << (lane * bits)
    return packed


def unpack_codes(packed: torch.Tensor, bits: int, num_columns: int, *, signed: bool) -> torch.Tensor:
    """The integers again.

    Args:
        packed: [N, B] uint8, as `pack_codes` makes it.
        bits: 8, 4 or 2.
        num_columns: K.
        signed: Whether they are in two's complement.

    Returns:
        [N, K], int8 where they are signed, else uint8.
    """
    if bits == 8:
        return packed.view(torch.int8) if signed else packed
    mask = (1 << bits) - 1
    lanes = torch.stack([(packed >> shift) & mask for shift in range(0, 8, bits)], dim=-1).flatten(1)[:, :num_columns]
    if not signed:
        return lanes
    # Up to the sign bit of a byte and back.
    widened: torch.Tensor = (lanes << (8 - bits)).view(torch.int8) >> (8 - bits)
    return widened
