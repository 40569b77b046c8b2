"""One indexed copy: several times faster than indexed assignment."""

from __future__ import annotations

import torch


def kv_write(kv: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """See the public function."""
    kv.view(kv.shape[0], -1, kv.shape[3]).index_copy_(1, slots, rows.transpose(0, 1))
