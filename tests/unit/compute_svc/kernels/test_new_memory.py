"""What kernels' tests run on."""

from __future__ import annotations

import torch


def test_new_memory_is_filled_with_what_no_result_may_be_made_of() -> None:
    assert torch.empty(3).isnan().all() and torch.ones(3).new_empty(2).isnan().all()
    assert torch.empty(3, dtype=torch.int8).eq(127).all()
