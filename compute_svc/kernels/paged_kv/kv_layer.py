"""Keys and values of one layer, as kernels get them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compute_svc.kernels.paged_kv.kv_codes import decode


@dataclass(frozen=True, slots=True, eq=False)
class KvLayer:
    """Pages of keys and values: numbers, or codes in groups (kernels/paged_kv/kv_codes.py).

    Attributes:
        data: [2 * kv_heads, num_pages, page_size, D], contiguous: key heads, then value heads. Float32 or bfloat16 numbers, or codes.
        scales: [2 * kv_heads, num_pages, page_size, ceil(D / group)] float16, contiguous; None = data are the numbers.
        group: How many codes in a row along a head share a scale; from 1 to D, 0 without scales.
    """

    data: torch.Tensor
    scales: torch.Tensor | None = None
    group: int = 0

    @property
    def device(self) -> torch.device:
        return self.data.device

    def read(self, pages: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """[2 * kv_heads, n, D] float32, the numbers of slots given by pages [n] and offsets [n] in them; references read so."""
        numbers = self.data[:, pages, offsets]
        return numbers.float() if self.scales is None else decode(numbers, self.scales[:, pages, offsets], self.group)
