"""What this process may use of its machine: cores and memory, as affinity and control groups (v1 and v2) grant them.

The functions that decide are pure and take the files' texts; two read the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")


def usable_cores() -> int:
    """Cores this process may keep busy; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folders = _own_folders("cpu")
    maxima = [text for folder in folders if (text := _text(folder / "cpu.max")) is not None]
    quotas = [(_text(folder / "cpu.cfs_quota_us") or "", _text(folder / "cpu.cfs_period_us") or "") for folder in folders]
    return granted_cores(affinity, cpu_max=maxima, cfs=quotas)


def usable_memory_bytes() -> int | None:
    """Memory this process may have, whether others use it now or not; None = the machine does not say."""
    folders = _own_folders("memory")
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [text for folder in folders for name in names if (text := _text(folder / name)) is not None]
    return granted_memory_bytes(_text(_MEMINFO) or "", limits)


def granted_cores(affinity: int, *, cpu_max: Iterable[str] = (), cfs: Iterable[tuple[str, str]] = ()) -> int:
    """Whole cores that can be kept busy.

    Args:
        affinity: cores the scheduler may put the process on.
        cpu_max: texts of `cpu.max`, of the process's group and those around it: "150000 100000", or "max 100000" for no quota.
        cfs: texts of `cpu.cfs_quota_us`, -1 for no quota, and `cpu.cfs_period_us` of each group.

    Returns:
        At least 1. Half a core more is left out: a thread that must wait for its quota holds up those that wait for it.
    """
    pairs = [*(text.split() for text in cpu_max), *([quota.strip(), period.strip()] for quota, period in cfs)]
    quotas = [int(pair[0]) / int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0].isdecimal() and _is_positive(pair[1])]
    return max(1, min([affinity, *map(int, quotas)]))


def granted_memory_bytes(meminfo: str, limits: Iterable[str]) -> int | None:
    """Memory that can be had.

    Args:
        meminfo: text of /proc/meminfo.
        limits: texts of `memory.max` and `memory.limit_in_bytes`, of the process's group and those around it; "max" for no limit.

    Returns:
        None if nothing says how much.
    """
    totals = [int(words[1]) * 1024 for line in meminfo.splitlines() if (words := line.split())[:1] == ["MemTotal:"] and len(words) == 3]
    return min([*totals, *(int(limit) for limit in limits if limit.strip().isdecimal())], default=None)


def group_folders(text: str, controller: str) -> list[PurePosixPath]:
    """The process's group and those around it, as folders below the mount of the control groups, outermost last.

    Args:
        text: of /proc/self/cgroup. In a container it may name folders that are only there outside.
        controller: "cpu" or "memory"; with v1 it has a tree of its own.
    """
    found: list[PurePosixPath] = []
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            roots = [PurePosixPath()]
        elif controller in controllers.split(","):
            roots = [PurePosixPath(controllers), PurePosixPath(controller)]
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        if ".." not in inner.parts:
            found += [root / part for root in roots for part in (inner, *inner.parents)]
        else:
            found += roots
    return list(dict.fromkeys(found))


def _own_folders(controller: str) -> Sequence[Path]:
    return [_CGROUPS / folder for folder in group_folders(_text(_OWN_CGROUP) or "", controller)]


def _text(path: Path) -> str | None:
    """None where there is no such file: other systems, other versions of control groups."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None


def _is_positive(number: str) -> bool:
    return number.isdecimal() and int(number) > 0
