"""A CPU limit for one process and its children, as a container has it: a cgroup (v1) with a quota for every tenth of a second."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup/cpu")
# Kubernetes' default.
_PERIOD_US = 100_000


def reason_against_quotas() -> str | None:
    """Why processes cannot be limited on this machine; None = they can."""
    if not (_ROOT / "cpu.cfs_quota_us").exists() and not (_ROOT / "cgroup.procs").exists():
        return f"there is no cgroup v1 with the cpu controller at {_ROOT}"
    folder = _folder("probe")
    try:
        folder.mkdir(parents=True)
        (folder / "cpu.cfs_quota_us").write_text(str(_PERIOD_US))
    except OSError as error:
        return f"no cgroup can be made in {_ROOT} ({error.strerror}): it takes root"
    finally:
        _remove(folder)
    return None


class CpuQuota:
    """The limit of one process.

    Args:
        name: Of no other limit.
        millicores: At most.
    """

    def __init__(self, name: str, millicores: int) -> None:
        self._folder = _folder(name)
        self._folder.mkdir(parents=True)
        (self._folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        self.set(millicores)

    def set(self, millicores: int) -> None:
        """Another limit from now on."""
        (self._folder / "cpu.cfs_quota_us").write_text(str(millicores * _PERIOD_US // 1000))

    def command(self, program: Sequence[str]) -> tuple[str, ...]:
        """Runs a program within the limit from its first instruction."""
        return ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._folder / "cgroup.procs"), *program)

    def throttled_s(self) -> float:
        """For how long it was held back so far, all its threads together."""
        fields = dict(line.split() for line in (self._folder / "cpu.stat").read_text().splitlines())
        return int(fields["throttled_time"]) / 1e9

    def remove(self) -> None:
        """The process has ended."""
        _remove(self._folder)


def _folder(name: str) -> Path:
    return _ROOT / f"triserve-elastic-{os.getpid()}" / name


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
    # The last one takes the folder of this run with it.
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
