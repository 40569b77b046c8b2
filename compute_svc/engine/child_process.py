"""How a process that only computes for its parent ends: with it, and by no signal of its own."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Effects: signals that ask a process to stop are ignored from now on; the parent's death is this one's."""
    # The parent is the one that is told to stop, and drains first; both may get the signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # Where a closed socket is seen only after a long load or step, the parent's death counts at once.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
