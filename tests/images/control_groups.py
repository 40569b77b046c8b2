"""Control groups of containers, of either version, and what podman leaves of them."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
# Of all containers, as podman makes it where no systemd does.
_PARENT = "libpod_parent"


def memory_limit(pid: int) -> Path:
    """The file that says how many bytes a process's group may use."""
    return _file(pid, "memory", v1="memory.limit_in_bytes", v2="memory.max")


def processes_limit(pid: int) -> Path:
    """The file that says how many processes its group may have."""
    return _file(pid, "pids", v1="pids.max", v2="pids.max")


def _file(pid: int, controller: str, *, v1: str, v2: str) -> Path:
    groups = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    for _, controllers, group in groups:
        if controller in controllers.split(","):
            return _ROOT / controller / group.lstrip("/") / v1
    return _ROOT / groups[-1][2].lstrip("/") / v2


def remove_empty() -> None:
    """Removes podman's groups that have nothing in them."""
    for parent in (*_ROOT.glob(f"*/{_PARENT}"), _ROOT / _PARENT):
        for folder in (*sorted((one for one in parent.rglob("*") if one.is_dir()), reverse=True), parent):
            try:
                folder.rmdir()
            except OSError:
                continue
