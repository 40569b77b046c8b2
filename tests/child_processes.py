"""Processes that a test has started, however deep."""

from __future__ import annotations

import psutil


def children_running(module: str, parent: int | None = None) -> list[psutil.Process]:
    """Descendants of a process, of this one by default, whose command names a module. One that has ended and was not waited for has none."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if module in process.cmdline():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found
