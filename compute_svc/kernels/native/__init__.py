"""A small C++ library of our own for CPUs, built where it runs; every operation in it has one of torch's own operations as a fallback."""

from __future__ import annotations

from compute_svc.kernels.native.choice import checked_library, native_library, use_native_kernels
from compute_svc.kernels.native.library import DTYPES, NativeKernelsError, NativeLibrary, NativeMode

__all__ = ["DTYPES", "NativeKernelsError", "NativeLibrary", "NativeMode", "checked_library", "native_library", "use_native_kernels"]
