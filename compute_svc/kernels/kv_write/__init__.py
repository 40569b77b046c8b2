"""Writing new keys and values into their pages."""

from __future__ import annotations

import torch

from compute_svc.kernels.kv_write import aten


def kv_write(kv: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """Copies each token's key and value heads to its slot.

    Args:
        kv: [2 * kv_heads, num_pages, page_size, D], one layer, contiguous.
        slots: [T] int64, page * page_size + offset, no two alike.
        rows: [T, 2 * kv_heads, D], kv's dtype, any strides: key heads, then value heads.

    Effects: writes kv.

    Raises:
        IndexError: On a CPU, a slot is not in the store; a device stops at it.
    """
    aten.kv_write(kv, slots, rows)
