"""Indexed copies: several times faster than indexed assignment."""

from __future__ import annotations

import torch

from compute_svc.kernels.paged_kv.kv_codes import encode
from compute_svc.kernels.paged_kv.kv_layer import KvLayer


def kv_write(kv: KvLayer, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """See the public function."""
    if kv.scales is None:
        _copy(kv.data, slots, rows.to(kv.data.dtype))
    else:
        codes, scales = encode(rows, kv.group, kv.data.dtype)
        # As integers, since a CPU copies no float8 by index.
        _copy(kv.data.view(torch.int8), slots, codes.view(torch.int8))
        _copy(kv.scales, slots, scales)


def _copy(stored: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """Copies rows [T, heads, n] to their slots of stored [heads, pages, page_size, n]."""
    stored.view(stored.shape[0], -1, stored.shape[3]).index_copy_(1, slots, rows.transpose(0, 1))
