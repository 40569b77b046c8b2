"""With native kernels and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from compute_svc.kernels.native import NativeMode, use_native_kernels
from tests.fakes.native_libraries import native_libraries


@contextmanager
def native_kernels(mode: NativeMode) -> Iterator[None]:
    """The whole process uses the library or does not, and chooses anew behind the block; skips the test if it is required and cannot be built."""
    if mode == "required":
        native_libraries()
    use_native_kernels(mode)
    try:
        yield
    finally:
        use_native_kernels("auto")
