"""Processes that a test has started, and those that these have."""

from __future__ import annotations

import psutil


def children_running(module: str, parent: int | None = None, *, directly: bool = False) -> list[psutil.Process]:
    """Processes that a process, this one by default, has started, or those have, or only that it has started itself, whose command names a module.

    One that has ended and was not waited for has no command.
    """
    found = []
    for process in psutil.Process(parent).children(recursive=not directly):
        try:
            if module in process.cmdline():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found
