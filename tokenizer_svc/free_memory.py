"""Gives memory that is free back to the system, where the C library would keep it for ever."""

from __future__ import annotations

import ctypes


def release_free_memory() -> None:
    """Asks the C library for it; one that has no such call, as on musl and macOS, keeps little by itself. Takes some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
