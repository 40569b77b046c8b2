"""The C library's memory, tuned for steps that allocate the same megabytes again and again."""

from __future__ import annotations

import ctypes
import logging
from functools import cache

_log = logging.getLogger(__name__)

# Names of malloc.h, and the largest threshold glibc takes on 64-bit machines.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD_BYTES = 32 << 20
_NEVER = -1


@cache
def keep_freed_memory() -> bool:
    """Makes the process keep the memory it frees, for reuse.

    By default glibc returns large blocks to the system as soon as they are free, and every page of the next one costs a page fault:
    measured, that is most of a decode step of 64 requests.

    Returns:
        Whether the C library took the setting.

    Effects: on the whole process, for the rest of its life; only the first call does anything.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    taken = mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD_BYTES) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
    if not taken:
        _log.warning("freed memory goes back to the system at once, which costs time in large steps: the C library has no mallopt")
    return taken
