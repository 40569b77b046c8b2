"""With kernels that keep to one order of sums, and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from compute_svc.kernels.backend import use_batch_invariance


@contextmanager
def batch_invariance() -> Iterator[None]:
    """The whole process keeps to one order within the block."""
    use_batch_invariance(True, "cuda")
    try:
        yield
    finally:
        use_batch_invariance(False, "cuda")
