"""Blocks of 16 ids that lie 256 apart, as the specification of the draw numbers them, and the order in which ids are ranked."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LANES = 16
STRIDE = 256
SPAN = LANES * STRIDE
# Rank keys that no id has.
WORST = (1 << 63) - 1
BEST = -(1 << 63)
_SIGN_BITS = 0x7FFFFFFF


def count(width: int) -> int:
    """Number of blocks of rows of so many logits; some of the last may have no id."""
    return -(-width // SPAN) * STRIDE


def maxima(logits: torch.Tensor) -> torch.Tensor:
    """The largest logit of each block.

    Args:
        logits: [rows, width] float32.

    Returns:
        [rows, blocks] float32, -inf where a block has no id.
    """
    rows, width = logits.shape
    assert logits.stride(1) == 1, "logits of a row lie side by side"
    whole = width // SPAN
    parts = []
    if whole:
        parts.append(
            logits.as_strided((rows, whole, LANES, STRIDE), (logits.stride(0), SPAN, STRIDE, 1), logits.storage_offset())
            .amax(2)
            .view(rows, -1)
        )
    if width % SPAN:
        rest = F.pad(logits[:, whole * SPAN :], (0, SPAN - width % SPAN), value=-torch.inf)
        parts.append(rest.view(rows, LANES, STRIDE).amax(1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def gather(logits: torch.Tensor, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of some blocks of each row and their logits, -inf for ids that do not exist.

    Args:
        logits: [rows, width] float32.
        blocks: [rows, n] int64.

    Returns:
        [rows, n, 16] int64 and float32.
    """
    rows, width = logits.shape
    base = ((blocks >> 8) << 12) | (blocks & (STRIDE - 1))
    lanes = torch.arange(0, SPAN, STRIDE, device=logits.device)
    ids = base[:, :, None] + lanes
    if width % SPAN == 0:
        return ids, logits.gather(1, ids.view(rows, -1)).view(ids.shape)
    values = logits.gather(1, ids.clamp(max=width - 1).view(rows, -1)).view(ids.shape)
    return ids, values.masked_fill_(ids >= width, -torch.inf)


def rank_keys(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Integers that rise where ids are ranked: by falling logit, then by rising id. `WORST` is above all of them and `BEST` below.

    Args:
        logits: float32 of any shape.
        ids: int64 of the same shape.
    """
    # Bits of positive numbers rise with them and those of negative numbers fall. A negative zero becomes a positive one.
    bits = (logits + 0.0).view(torch.int32)
    falling = ((bits >> 31) & _SIGN_BITS).bitwise_xor_(bits).bitwise_not_()
    return (falling.to(torch.int64) << 32).bitwise_or_(ids)


def ranked_logits(keys: torch.Tensor) -> torch.Tensor:
    """float32 of the same shape: the logits that rank keys were made of; NaN for `WORST`."""
    rising = (keys >> 32).to(torch.int32).bitwise_not_()
    return ((rising >> 31) & _SIGN_BITS).bitwise_xor_(rising).view(torch.float32)


def ranked_ids(keys: torch.Tensor) -> torch.Tensor:
    """int64 of the same shape: the ids that rank keys were made of."""
    return keys & 0xFFFFFFFF
