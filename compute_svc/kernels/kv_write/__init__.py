"""Writing new keys and values into their pages."""

from __future__ import annotations

import torch

from compute_svc.kernels.kv_write import aten, native
from compute_svc.kernels.native import native_library
from compute_svc.kernels.paged_kv.kv_layer import KvLayer


def kv_write(kv: KvLayer, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """Stores each token's key and value heads in its slot, rounded to what the store holds or as codes (kernels/paged_kv/kv_codes.py).

    Args:
        kv: One layer.
        slots: [T] int64, page * page_size + offset, no two alike.
        rows: [T, 2 * kv_heads, D], floating, any strides: key heads, then value heads.

    Effects: writes kv.

    Raises:
        IndexError: On a CPU, a slot is not in the store; a device stops at it.
    """
    library = native_library() if kv.data.dtype == torch.int8 and kv.data.device.type == "cpu" else None
    if library is None:
        aten.kv_write(kv, slots, rows)
    else:
        native.kv_write(kv, slots, rows, library)
