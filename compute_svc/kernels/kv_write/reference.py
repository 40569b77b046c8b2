"""Indexing by page and offset."""

from __future__ import annotations

import torch


def kv_write(kv: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """See the public function."""
    page_size = kv.shape[2]
    kv[:, slots // page_size, slots % page_size] = rows.transpose(0, 1)
