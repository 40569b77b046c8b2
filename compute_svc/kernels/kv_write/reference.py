"""Indexing by page and offset, and one group after the other."""

from __future__ import annotations

import math

import numpy as np
import torch

from compute_svc.kernels.paged_kv.kv_layer import KvLayer


def kv_write(kv: KvLayer, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """See the public function; of codes it knows int8."""
    page_size = kv.data.shape[2]
    pages, offsets = slots // page_size, slots % page_size
    if kv.scales is None:
        kv.data[:, pages, offsets] = rows.transpose(0, 1).to(kv.data.dtype)
        return
    for token, (page, offset) in enumerate(zip(pages.tolist(), offsets.tolist(), strict=True)):
        for head, numbers in enumerate(rows[token].float()):
            for index, group in enumerate(numbers.split(kv.group)):
                scale = _scale(group.abs().max().item())
                start = index * kv.group
                kv.scales[head, page, offset, index] = scale
                kv.data[head, page, offset, start : start + len(group)] = torch.tensor([_code(one, scale) for one in group.tolist()])


def _scale(largest: float) -> float:
    """The smallest float16 that is no less than a 127th, rounded to float32."""
    if not math.isfinite(largest):
        return math.nan
    exact = min(float(np.float32(largest) / np.float32(127)), 65504.0)
    nearest = np.float16(exact)
    return float(nearest if float(nearest) >= exact else np.nextafter(nearest, np.float16(np.inf)))


def _code(number: float, scale: float) -> int:
    """Half to even, of a quotient rounded to float32."""
    if scale == 0 or math.isnan(scale):
        return 0
    return max(-127, min(127, round(float(np.float32(number) / np.float32(scale)))))
