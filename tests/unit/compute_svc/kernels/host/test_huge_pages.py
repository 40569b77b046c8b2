"""Copies among others in large pieces of memory."""

from __future__ import annotations

import gc
import itertools
import weakref

import torch

from compute_svc.kernels.host import huge_pages
from compute_svc.kernels.host.huge_pages import in_huge_pages


def test_copies_are_equal_aligned_and_share_no_byte() -> None:
    tensors = [torch.randn(3, 5), torch.arange(7, dtype=torch.uint8), torch.randn(33).to(torch.float16), torch.randn(1 << 20)]
    copies = [in_huge_pages(tensor) for tensor in tensors]
    for tensor, copy in zip(tensors, copies, strict=True):
        assert copy.dtype == tensor.dtype and torch.equal(copy, tensor)
        assert copy.data_ptr() % 64 == 0
    spans = sorted((copy.data_ptr(), copy.data_ptr() + copy.nbytes) for copy in copies)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_what_is_larger_than_a_chunk_has_one_of_its_own() -> None:
    large = torch.zeros(huge_pages._CHUNK_BYTES + 1, dtype=torch.uint8)
    large[-1] = 7
    assert torch.equal(in_huge_pages(large), large)
    assert in_huge_pages(torch.ones(3)).tolist() == [1.0, 1.0, 1.0]


def test_memory_goes_with_the_last_of_its_pieces() -> None:
    in_huge_pages(torch.ones(3))
    chunk = weakref.ref(huge_pages._chunks[0])
    copy = in_huge_pages(torch.ones(5))
    huge_pages._chunks.clear()
    gc.collect()
    assert chunk() is None
    assert copy.tolist() == [1.0] * 5
