"""Becomes another program that dies with its parent. Run by path, in isolated mode: `python -I -S launch.py PARENT_PID PROGRAM ARG...`.

A small program of its own, because the alternative, Python code between fork and exec, may deadlock in a process with threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Asks the kernel for SIGKILL on the parent's death, where it can do that, and replaces itself."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the kernel was asked.
    if os.getppid() == parent:
        os.execvp(program[0], program)


if __name__ == "__main__":
    main()
