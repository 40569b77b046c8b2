"""The memory that keys and values live in; which page is whose is the allocator's business."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys

import numpy as np
import numpy.typing as npt
import torch


class KvPageStore:
    """Keys and values of every layer, in pages of a fixed number of tokens.

    One tensor [num_layers, 2 * num_kv_heads, num_pages, page_size_tokens, head_dim]: a layer's key heads, then its value heads, so
    that one gather and one scatter serve both. Slot = page * page_size_tokens + offset.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        page_size_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocates all of it, zeroed. On a CPU a page enters memory when it is first written.

        Raises:
            ValueError: A size is below 1.
            MemoryError: The system does not give so much.
        """
        sizes = {
            "num_layers": num_layers,
            "num_pages": num_pages,
            "page_size_tokens": page_size_tokens,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}, it must be at least 1")
        self.num_layers = num_layers
        self.num_pages = num_pages
        self.page_size_tokens = page_size_tokens
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self._kv = _zeros((num_layers, 2 * num_kv_heads, num_pages, page_size_tokens, head_dim), dtype, device)
        self._layers = self._kv.unbind(0)

    @property
    def bytes_per_page(self) -> int:
        """What one page costs over all layers, keys and values together."""
        return self._kv[:, :, 0].numel() * self._kv.element_size()

    def kv(self, layer: int) -> torch.Tensor:
        """[2 * num_kv_heads, num_pages, page_size_tokens, head_dim], a view: key heads first."""
        return self._layers[layer]

    def k(self, layer: int) -> torch.Tensor:
        """[num_kv_heads, num_pages, page_size_tokens, head_dim], a view."""
        return self._layers[layer][: self.num_kv_heads]

    def v(self, layer: int) -> torch.Tensor:
        """[num_kv_heads, num_pages, page_size_tokens, head_dim], a view."""
        return self._layers[layer][self.num_kv_heads :]

    def count_finite(self, pages: npt.NDArray[np.int64]) -> int:
        """How many of some pages, from the first on, hold numbers alone, in every layer.

        Args:
            pages: [n] int64, all of them written.
        """
        for index, page in enumerate(pages.tolist()):
            if not bool(self._kv[:, :, page].isfinite().all()):
                return index
        return len(pages)

    def clear(self, pages: torch.Tensor) -> None:
        """Zeroes pages in every layer.

        Args:
            pages: [n] int64, on the store's device.
        """
        self._kv.index_fill_(2, pages, 0)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes the zeros; an anonymous mapping is zero by itself and costs nothing before its first use.
    num_bytes = math.prod(shape) * dtype.itemsize
    try:
        # Private: a shared mapping is a file in memory, which gets no huge pages.
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{num_bytes} bytes cannot be had: {error}") from error
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel built without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
