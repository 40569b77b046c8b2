"""What this machine has."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from triserve.rpc.machine import usable_cores

_CPUINFO = Path("/proc/cpuinfo")


def num_cores() -> int:
    """Cores this process may keep busy, by affinity and quota."""
    return usable_cores()


def describe_hardware() -> dict[str, Any]:
    """Processor, cores, memory and system, as far as the machine says."""
    return {"processor": _processor(), "cores": num_cores(), "memory_bytes": _memory_bytes(), "system": platform.platform()}


def _processor() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
