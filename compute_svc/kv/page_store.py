"""The memory that keys and values live in; which page is whose is the allocator's business."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.kernels.paged_kv.kv_codes import CODE_DTYPES
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kv.kv_format import KvFormat


class KvPageStore:
    """Keys and values of every layer, in pages of a fixed number of tokens.

    One tensor [num_layers, 2 * num_kv_heads, num_pages, page_size_tokens, head_dim]: a layer's key heads, then its value heads, so
    that one gather and one scatter serve both. Slot = page * page_size_tokens + offset. Of codes there is a second one,
    [num_layers, 2 * num_kv_heads, num_pages, page_size_tokens, ceil(head_dim / group)] float16, of scales.
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
        *,
        group: int | None = None,
    ) -> None:
        """Allocates all of it, zeroed. On a CPU a page enters memory when it is first written.

        Args:
            num_layers: Of the model.
            num_pages: Pages.
            page_size_tokens: Tokens of one.
            num_kv_heads: Key heads of a layer; there are as many value heads.
            head_dim: Width of each.
            dtype: Of numbers, or of codes.
            device: Where.
            group: How many codes in a row along a head share a scale, all of a head if it is narrower; None = dtype is of numbers.

        Raises:
            ValueError: A size is below 1, or codes come without groups, or the other way round.
            MemoryError: The system does not give so much.
        """
        sizes = {
            "num_layers": num_layers,
            "num_pages": num_pages,
            "page_size_tokens": page_size_tokens,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            **({} if group is None else {"group": group}),
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}, it must be at least 1")
        if (dtype in CODE_DTYPES) != (group is not None):
            raise ValueError(f"group is {group} and dtype {dtype}: codes are in groups, numbers are not")
        self.num_layers = num_layers
        self.num_pages = num_pages
        self.page_size_tokens = page_size_tokens
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.format = KvFormat(dtype, group)
        self._group = 0 if group is None else min(group, head_dim)
        shape = (num_layers, 2 * num_kv_heads, num_pages, page_size_tokens)
        self._data = _zeros((*shape, head_dim), dtype, device)
        self._scales = None if group is None else _zeros((*shape, -(-head_dim // self._group)), torch.float16, device)
        all_scales = [None] * num_layers if self._scales is None else self._scales.unbind(0)
        self._layers = [KvLayer(data, scales, self._group) for data, scales in zip(self._data.unbind(0), all_scales, strict=True)]

    @property
    def bytes_per_page(self) -> int:
        """What one page costs over all layers, keys and values together."""
        return sum(part[:, :, 0].numel() * part.element_size() for part in self._parts())

    def kv(self, layer: int) -> KvLayer:
        """A layer's keys and values, as views."""
        return self._layers[layer]

    def k(self, layer: int) -> torch.Tensor:
        """[num_kv_heads, num_pages, page_size_tokens, head_dim], a view of keys, or of their codes."""
        return self._layers[layer].data[: self.num_kv_heads]

    def v(self, layer: int) -> torch.Tensor:
        """[num_kv_heads, num_pages, page_size_tokens, head_dim], a view of values, or of their codes."""
        return self._layers[layer].data[self.num_kv_heads :]

    def count_finite(self, pages: npt.NDArray[np.int64]) -> int:
        """How many of some pages, from the first on, hold numbers alone, in every layer.

        Args:
            pages: [n] int64, all of them written.
        """
        # The scale of a group that has a number which is not finite is none itself.
        numbers = self._data if self._scales is None else self._scales
        for index, page in enumerate(pages.tolist()):
            if not bool(numbers[:, :, page].isfinite().all()):
                return index
        return len(pages)

    def clear(self, pages: torch.Tensor) -> None:
        """Zeroes pages in every layer.

        Args:
            pages: [n] int64, on the store's device.
        """
        for part in self._parts():
            # As integers where it is codes: a CPU fills no float8 by index.
            (part if part.element_size() > 1 else part.view(torch.int8)).index_fill_(2, pages, 0)

    def _parts(self) -> tuple[torch.Tensor, ...]:
        return (self._data,) if self._scales is None else (self._data, self._scales)


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
