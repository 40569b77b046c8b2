"""The mask of a row, as `RowMask.allowed` of sampler.proto has it: which ids may be drawn, a bit for each, the lowest of a byte first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_FORCED_TOKENS = 64
"""Tokens that a mask may say follow one after the other because there is no other."""


def mask_bytes(logits_width: int) -> int:
    """Bytes of a mask of so many ids: a bit each, rounded up."""
    return -(-logits_width // 8)


def unpacked(allowed: bytes, logits_width: int) -> NDArray[np.bool_]:
    """The bits of a mask, [logits_width].

    Args:
        allowed: `mask_bytes(logits_width)` bytes.
        logits_width: Number of ids.
    """
    return np.unpackbits(np.frombuffer(allowed, np.uint8), count=logits_width, bitorder="little").view(np.bool_)
