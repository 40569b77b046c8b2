"""Kernels' tests: new memory is as bad as it can be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _new_memory_is_filled() -> Iterator[None]:
    """`torch.empty` gives NaN, or the largest integer: nobody gets by with what happened to be there. Warns of no operation without a fixed order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
