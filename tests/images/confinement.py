"""What a running container's process may do, as the kernel has it and not as it was asked for."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.images.control_groups import memory_limit, processes_limit

_COMPILERS = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|clang|ld|as|cmake|rustc|cargo|go)(-[\d.]+)?$")
_NO_RIGHTS = "0" * 16
USER = "10001"


def problems(pid: int, *, memory_bytes: int) -> list[str]:
    """All that a process may do and should not.

    Args:
        pid: Of the container's first process.
        memory_bytes: What it may use at most.
    """
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    found = [f"{name} is {status[name]}" for name in ("Uid", "Gid") if set(status[name].split()) != {USER}]
    found += [f"{name} is {status[name]}" for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if status[name] != _NO_RIGHTS]
    found += [f"{name} is {status[name]}" for name, wanted in (("NoNewPrivs", "1"), ("Seccomp", "2")) if status[name] != wanted]
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    if not any(mount[4] == "/" and "ro" in mount[5].split(",") for mount in mounts):
        found.append("its root can be written")
    memory, processes = memory_limit(pid).read_text().strip(), processes_limit(pid).read_text().strip()
    if memory != str(memory_bytes):
        found.append(f"it may use {memory} bytes of memory, not {memory_bytes}")
    if not processes.isdecimal():
        found.append(f"it may start {processes} processes")
    return found


def tools(pid: int) -> list[str]:
    """Installers and compilers in a container's file system, mounts left out."""
    root = Path(f"/proc/{pid}/root")
    device = root.stat().st_dev
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if _is_on(device, Path(folder, name))]
        if "__main__.py" in files and Path(folder).name in ("pip", "ensurepip"):
            found.append(folder)
        if Path(folder).name in ("bin", "sbin"):
            found += [f"{folder}/{name}" for name in files if _COMPILERS.fullmatch(name) or name.startswith("pip")]
    return [path.removeprefix(str(root)) for path in found]


def _is_on(device: int, folder: Path) -> bool:
    try:
        return folder.lstat().st_dev == device
    except OSError:
        return False
